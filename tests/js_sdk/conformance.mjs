// Conformance of an E2B-compatible server, judged by the unmodified official SDK (npm "e2b", "@e2b/code-interpreter").
//
//   npm ci && E2B_API_URL=… E2B_SANDBOX_URL=… E2B_API_KEY=… node conformance.mjs
//
//   E2B_API_URL, E2B_SANDBOX_URL  base URLs, may be the same (E2b-Sandbox-Id/-Port tell requests apart)
//   E2B_API_KEY                   a key the server accepts
//   NODE_EXTRA_CA_CERTS           CA file, for https with a private CA
//   CONFORMANCE_GROUPS            e.g. files,commands (default: all)
//   CONFORMANCE_FILTER            only checks whose name contains this text
//   CONFORMANCE_TEMPLATE          template to create from (default: the SDK's)
//   CONFORMANCE_TIMEOUT_MS        bound of one check (default 20000)
//   CONFORMANCE_ENVD_URL          attach to a bare envd instead: checks that need a control plane are skipped
//   CONFORMANCE_ENVD_TOKEN, CONFORMANCE_ENVD_VERSION   its access token and version (default: none, 0.6.13)
//
// Prints "ok - name", "not ok - name: reason" or "skip - name: reason" per check and, last,
// "N passed, N failed, N skipped". Exit code: 0 all passed, 1 something failed, 2 wrong use.
//
// A check is check(name, fn) inside a group(name, …); it fails by throwing, skips by calling skip(reason).
// `sbx` is the sandbox all checks share, `dir` a directory in it that is removed at the end.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import http from 'node:http'
import https from 'node:https'
import { inspect } from 'node:util'
import {
  Sandbox, SandboxError, SandboxNotFoundError, NotFoundError, FileNotFoundError,
  InvalidArgumentError, AuthenticationError, TimeoutError, CommandExitError, FileType,
} from 'e2b'
import { Sandbox as CodeSandbox } from '@e2b/code-interpreter'

const env = process.env
delete env.E2B_DEBUG // in debug mode the SDK goes to fixed ports and skips the control plane
const envdUrl = env.CONFORMANCE_ENVD_URL
const template = env.CONFORMANCE_TEMPLATE
const checkTimeoutMs = Number(env.CONFORMANCE_TIMEOUT_MS || 20_000)
const run = randomBytes(5).toString('hex')
const dir = `/tmp/e2b-conformance-${run}`
const homeDir = `.e2b-conformance-${run}` // relative, so below the default user's home

// ---- runner -------------------------------------------------------------------------------------

class Skip extends Error {}
const skip = reason => { throw new Skip(reason) }
const groups = []
const group = (name, options, define) => groups.push({ name, ...options, define, checks: [] })
let defining
const check = (name, fn, options = {}) =>
  defining.checks.push({ name: `${defining.name}: ${name}`, control: defining.control, ...options, fn })

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const sha256 = data => createHash('sha256').update(data).digest('hex')
// Why a check failed, on one line.
function reason(error) {
  const generated = error?.code === 'ERR_ASSERTION' && error.generatedMessage && 'expected' in error
  const text = generated ? `got ${inspect(error.actual)}, expected ${inspect(error.expected)}` : error?.message || inspect(error)
  return text.replace(/\s+/g, ' ').trim().slice(0, 300)
}
// The outer quotes make any text one shell word.
const quote = text => `'${text.replaceAll("'", `'\\''`)}'`

function within(promise, ms, what) {
  let timer
  const expired = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what} took over ${ms} ms`)), ms) })
  promise.catch(() => {}) // a late rejection has nobody to hear it
  return Promise.race([promise, expired]).finally(() => clearTimeout(timer))
}

// Waits until fn() returns something true; a throwing fn counts as "not yet".
async function until(what, fn, ms = 5000) {
  const deadline = Date.now() + ms
  for (let last; ;) {
    try { const value = await fn(); if (value) return value } catch (error) { last = error }
    if (Date.now() > deadline) throw new Error(`${what} did not happen within ${ms} ms${last ? ` (${last.message})` : ''}`)
    await sleep(50)
  }
}

// The promise must reject with exactly this class, not a relative of it.
async function rejects(promise, Class, pattern) {
  let error
  try { await promise } catch (caught) { error = caught }
  assert.ok(error, `expected ${Class.name}, nothing was thrown`)
  assert.ok(Object.getPrototypeOf(error) === Class.prototype,
    `expected ${Class.name}, got ${error.constructor?.name}: ${error.message}`)
  if (pattern) assert.match(error.message, pattern)
  return error
}

const near = (actual, expected, slack, what) =>
  assert.ok(Math.abs(actual - expected) <= slack, `${what}: ${actual}, expected ${expected} ± ${slack}`)

// ---- sandboxes and processes, all gone at the end -----------------------------------------------

const created = new Set()
async function create(options = {}) {
  const made = template ? await Sandbox.create(template, options) : await Sandbox.create(options)
  created.add(made)
  return made
}

// Another client of the same sandbox, with any access token.
const attach = (sandboxId, envdAccessToken) => new Sandbox({
  sandboxId, envdAccessToken, envdVersion: sbx.envdApi.version, sandboxUrl: envdUrl ?? env.E2B_SANDBOX_URL, apiKey: env.E2B_API_KEY,
})

let sbx
async function open() {
  if (envdUrl) {
    sbx = new Sandbox({
      sandboxId: 'conformance', sandboxUrl: envdUrl, apiKey: 'e2b_00',
      envdVersion: env.CONFORMANCE_ENVD_VERSION || '0.6.13', envdAccessToken: env.CONFORMANCE_ENVD_TOKEN || undefined,
    })
  } else {
    sbx = await create({ timeoutMs: 900_000, metadata: { conformance: run } })
  }
  await sbx.files.makeDir(dir)
  await sbx.files.makeDir(homeDir)
}

const pids = new Set()
async function background(command, options = {}) {
  const handle = await sbx.commands.run(command, { background: true, timeoutMs: 60_000, ...options })
  pids.add(handle.pid)
  return handle
}

async function close() {
  if (sbx) {
    const left = await sbx.commands.list().catch(() => [])
    for (const { pid } of left) if (pids.has(pid)) await sbx.commands.kill(pid).catch(() => {})
    await sbx.files.remove(dir).catch(() => {})
    await sbx.files.remove(homeDir).catch(() => {})
  }
  await Promise.all([...created].map(one => one.kill().catch(() => {})))
}

// ---- sandbox: life cycle over the control plane -------------------------------------------------

group('sandbox', { control: true }, () => {
  const unknownId = 'i' + 'z'.repeat(19) + '0'
  const ids = async options => {
    const found = []
    for (const pages = Sandbox.list(options); pages.hasNext;) found.push(...await pages.nextItems())
    return found
  }

  check('create gives a usable sandbox with an id of its own', async () => {
    const other = await create({ timeoutMs: 60_000 })
    assert.match(other.sandboxId, /^[A-Za-z0-9-]+$/)
    assert.notEqual(other.sandboxId, sbx.sandboxId)
    assert.equal((await other.commands.run('echo up')).stdout, 'up\n')
  })
  check('create without options uses the defaults of the server', async () => {
    const other = await create()
    const info = await other.getInfo()
    assert.ok(info.endAt - Date.now() > 10_000, `ends at ${info.endAt}`)
  })
  check('create: metadata comes back in getInfo', async () => {
    const metadata = { user: 'ann', 'a/b k': 'x y&z=1', unicode: 'žluťoučký 🐎' }
    const other = await create({ timeoutMs: 60_000, metadata })
    const got = (await other.getInfo()).metadata
    for (const key in metadata) assert.equal(got[key], metadata[key], key)
  })
  check('create: envs reach every command, envs of a command win', async () => {
    const other = await create({ timeoutMs: 60_000, envs: { CREATED: 'a b"c', BOTH: 'created' } })
    assert.equal((await other.commands.run('echo "$CREATED|$BOTH"')).stdout, 'a b"c|created\n')
    assert.equal((await other.commands.run('echo "$CREATED|$BOTH"', { envs: { BOTH: 'own' } })).stdout, 'a b"c|own\n')
    assert.equal((await other.commands.run('echo "$BOTH"')).stdout, 'created\n')
  })
  check('create: envs stay inside their sandbox', async () => {
    await create({ timeoutMs: 60_000, envs: { ONLY_THERE: 'x' } })
    assert.equal((await sbx.commands.run('echo "[$ONLY_THERE]"')).stdout, '[]\n')
  })
  check('create: timeout sets the end', async () => {
    const { startedAt, endAt } = await (await create({ timeoutMs: 120_000 })).getInfo()
    near(endAt - startedAt, 120_000, 5000, 'life in ms')
  })
  check('create: the sandbox is gone after its timeout', async () => {
    const other = await create({ timeoutMs: 2000 })
    assert.equal(await other.isRunning(), true)
    await until('the end of the sandbox', async () => !(await other.isRunning()), 8000)
    await until('SandboxNotFoundError from getInfo', () => other.getInfo().then(() => false, e => e instanceof SandboxNotFoundError))
  })
  check('create from an unknown template is refused', async () => {
    const error = await rejects(Sandbox.create(`no-such-template-${run}`).then(made => created.add(made)), SandboxError, /template/i)
    assert.ok([400, 404].includes(error.statusCode), `status ${error.statusCode}`)
  })

  check('getInfo: id, template, state', async () => {
    const info = await sbx.getInfo()
    assert.equal(info.sandboxId, sbx.sandboxId)
    assert.ok(info.templateId && typeof info.templateId === 'string', 'templateId')
    assert.equal(info.state, 'running')
  })
  check('getInfo: start and end', async () => {
    const { startedAt, endAt } = await sbx.getInfo()
    near(startedAt.getTime(), Date.now(), 600_000, 'startedAt')
    assert.ok(endAt > startedAt && endAt > new Date(), `ends at ${endAt}`)
  })
  check('getInfo: resources and envd version', async () => {
    const info = await sbx.getInfo()
    assert.ok(info.cpuCount >= 1 && Number.isInteger(info.cpuCount), `cpuCount ${info.cpuCount}`)
    assert.ok(info.memoryMB >= 1 && Number.isInteger(info.memoryMB), `memoryMB ${info.memoryMB}`)
    assert.match(info.envdVersion, /^\d+\.\d+\.\d+/)
    assert.equal(info.envdVersion, sbx.envdApi.version)
  })
  check('getInfo of an unknown id', () => rejects(Sandbox.getInfo(unknownId), SandboxNotFoundError))

  check('list finds a running sandbox, with its fields', async () => {
    const item = (await ids()).find(one => one.sandboxId === sbx.sandboxId)
    assert.ok(item, 'not listed')
    const info = await sbx.getInfo()
    for (const key of ['templateId', 'state', 'cpuCount', 'memoryMB', 'envdVersion']) assert.equal(item[key], info[key], key)
    assert.equal(item.metadata.conformance, run)
    assert.equal(item.startedAt.getTime(), info.startedAt.getTime())
    near(item.endAt - info.endAt, 0, 1000, 'endAt')
  })
  check('list: metadata filter', async () => {
    const tag = `filter-${run}`
    const mine = await create({ timeoutMs: 60_000, metadata: { tag, n: '1' } })
    await create({ timeoutMs: 60_000, metadata: { tag, n: '2' } })
    assert.equal((await ids({ query: { metadata: { tag } } })).length, 2)
    assert.deepEqual((await ids({ query: { metadata: { tag, n: '1' } } })).map(one => one.sandboxId), [mine.sandboxId])
    assert.deepEqual(await ids({ query: { metadata: { tag: `${tag}x` } } }), [])
  })
  check('list: metadata filter with reserved characters', async () => {
    const metadata = { [`k/${run} é`]: 'x y&z=1+2%' }
    const mine = await create({ timeoutMs: 60_000, metadata })
    assert.deepEqual((await ids({ query: { metadata } })).map(one => one.sandboxId), [mine.sandboxId])
  })
  check('list: state filter', async () => {
    const query = state => ({ query: { metadata: { conformance: run }, state } })
    assert.equal((await ids(query(['running']))).length, 1)
    assert.equal((await ids(query(['running', 'paused']))).length, 1)
    assert.equal((await ids(query(['paused']))).length, 0)
  })
  check('list: paginator walks all pages once', async () => {
    const metadata = { page: run }
    const made = []
    for (let i = 0; i < 3; i++) made.push((await create({ timeoutMs: 60_000, metadata })).sandboxId)
    const pages = Sandbox.list({ query: { metadata }, limit: 2 })
    const first = await pages.nextItems()
    assert.equal(first.length, 2)
    assert.ok(pages.hasNext && pages.nextToken, 'no token after a full page')
    const second = await pages.nextItems()
    assert.equal(second.length, 1)
    assert.equal(pages.hasNext, false)
    assert.deepEqual([...first, ...second].map(one => one.sandboxId).sort(), made.sort())
    await rejects(pages.nextItems(), Error, /No more items/)
  })
  check('list: order by start', async () => {
    const metadata = { order: run }
    await create({ timeoutMs: 60_000, metadata })
    await sleep(1100) // some servers keep whole seconds
    await create({ timeoutMs: 60_000, metadata })
    const starts = async order => (await ids({ query: { metadata }, order })).map(one => one.startedAt.getTime())
    const [older, newer] = await starts('asc')
    assert.ok(older < newer, `asc gave ${older}, ${newer}`)
    assert.deepEqual(await starts('desc'), [newer, older])
  })

  check('list: template filter', async () => {
    const metadata = { template: run }
    const base = await Sandbox.create('base', { timeoutMs: 60_000, metadata })
    try {
      assert.deepEqual((await ids({ query: { metadata, template: 'base' } })).map(one => one.sandboxId), [base.sandboxId])
      assert.deepEqual(await ids({ query: { metadata, template: `no-${run}` } }), [])
    } finally {
      await base.kill()
    }
  })
  check('list: started at or after a time', async () => {
    const metadata = { after: run }
    await create({ timeoutMs: 60_000, metadata })
    await sleep(1100)
    const newer = await create({ timeoutMs: 60_000, metadata })
    const startedAfter = (await newer.getInfo()).startedAt
    assert.deepEqual((await ids({ query: { metadata, startedAfter } })).map(one => one.sandboxId), [newer.sandboxId])
    assert.deepEqual(await ids({ query: { metadata, startedAfter: new Date(startedAfter.getTime() + 1000) } }), [])
  })

  check('connect reaches the same sandbox', async () => {
    const same = await Sandbox.connect(sbx.sandboxId)
    assert.equal(same.sandboxId, sbx.sandboxId)
    await sbx.files.write(`${dir}/connect`, run)
    assert.equal(await same.files.read(`${dir}/connect`), run)
  })
  check('connect lengthens the life, never shortens it', async () => {
    const other = await create({ timeoutMs: 100_000 })
    const end = async () => (await other.getInfo()).endAt.getTime()
    const before = await end()
    await Sandbox.connect(other.sandboxId, { timeoutMs: 30_000 })
    near(await end(), before, 2000, 'end after a shorter connect')
    await Sandbox.connect(other.sandboxId, { timeoutMs: 300_000 })
    near(await end(), Date.now() + 300_000, 10_000, 'end after a longer connect')
  })
  check('connect to an unknown id', () => rejects(Sandbox.connect(unknownId), SandboxNotFoundError))

  check('setTimeout lengthens and shortens', async () => {
    const other = await create({ timeoutMs: 60_000 })
    for (const ms of [240_000, 90_000]) {
      await other.setTimeout(ms)
      near((await other.getInfo()).endAt.getTime(), Date.now() + ms, 10_000, 'end')
    }
  })
  check('setTimeout of an unknown id', () => rejects(Sandbox.setTimeout(unknownId, 60_000), SandboxNotFoundError))

  check('isRunning is true while it runs', async () => assert.equal(await sbx.isRunning(), true))
  check('isRunning is false after kill', async () => {
    const other = await create({ timeoutMs: 60_000 })
    assert.equal(await other.isRunning(), true)
    await other.kill()
    assert.equal(await other.isRunning(), false)
  })
  check('kill is true once, then false', async () => {
    const other = await create({ timeoutMs: 60_000 })
    assert.equal(await other.kill(), true)
    assert.equal(await other.kill(), false)
    assert.equal(await Sandbox.kill(other.sandboxId), false)
  })
  check('kill of an unknown id is false', async () => assert.equal(await Sandbox.kill(unknownId), false))
  check('kill removes it from getInfo and list', async () => {
    const metadata = { killed: run }
    const other = await create({ timeoutMs: 60_000, metadata })
    assert.equal((await ids({ query: { metadata } })).length, 1)
    await other.kill()
    await rejects(other.getInfo(), SandboxNotFoundError)
    assert.equal((await ids({ query: { metadata } })).length, 0)
  })
  check('kill ends a running command with TimeoutError, and only there', async () => {
    const other = await create({ timeoutMs: 60_000 })
    const there = await other.commands.run('sleep 60', { background: true })
    const here = await background('sleep 60')
    await other.kill()
    await rejects(within(there.wait(), 10_000, 'the end of the stream'), TimeoutError)
    assert.ok((await sbx.commands.list()).some(one => one.pid === here.pid), 'a command of another sandbox is gone')
    await here.kill()
  })
  check('processes of another sandbox are neither listed nor reachable', async () => {
    const other = await create({ timeoutMs: 60_000 })
    const { pid } = await other.commands.run('sleep 60', { background: true })
    assert.ok((await other.commands.list()).some(one => one.pid === pid))
    // In its own pid namespace the same number may exist here too, so look at the argument.
    const mark = `sleep 60 # ${run}-other`
    await other.commands.run(mark, { background: true })
    assert.ok(!(await sbx.commands.list()).some(one => one.args.includes(mark)))
  })
})

// ---- life: pausing, resuming, what happens at the end of it -------------------------------------

group('life', { control: true }, () => {
  const state = async one => (await Sandbox.getInfo(one.sandboxId)).state
  const paused = one => until('the pause', async () => await state(one) === 'paused', 10_000)

  check('pause is true once, then false', async () => {
    const other = await create({ timeoutMs: 60_000 })
    assert.equal(await other.pause(), true)
    assert.equal(await state(other), 'paused')
    assert.equal(await other.pause(), false)
    assert.equal(await Sandbox.pause(other.sandboxId), false)
  })
  check('pause of an unknown id', () => rejects(Sandbox.pause('i' + 'z'.repeat(19) + '1'), SandboxNotFoundError))
  check('a paused sandbox is not running and answers nothing', async () => {
    const other = await create({ timeoutMs: 60_000 })
    await other.pause()
    assert.equal(await other.isRunning(), false)
    await rejects(other.commands.list(), TimeoutError, /sandbox/i)
  })
  check('connect resumes: files, processes and their output', async () => {
    const other = await create({ timeoutMs: 60_000 })
    await other.files.write(`${dir}/kept`, run)
    const counter = await other.commands.run('while sleep 0.1; do echo tick; done', { background: true, timeoutMs: 0 })
    await other.pause()
    const again = await Sandbox.connect(other.sandboxId, { timeoutMs: 60_000 })
    assert.equal(await state(other), 'running')
    assert.equal(await again.files.read(`${dir}/kept`), run)
    let out = ''
    const same = await again.commands.connect(counter.pid, { onStdout: data => { out += data } })
    await until('a tick after the pause', () => out.includes('tick'))
    await same.kill()
  })
  check('a paused sandbox is listed as paused', async () => {
    const metadata = { paused: run }
    const other = await create({ timeoutMs: 60_000, metadata })
    const found = async state => (await Sandbox.list({ query: { metadata, state } }).nextItems()).map(one => one.sandboxId)
    await other.pause()
    assert.deepEqual(await found(['paused']), [other.sandboxId])
    assert.deepEqual(await found(['running']), [])
  })
  check('kill of a paused sandbox', async () => {
    const other = await create({ timeoutMs: 60_000 })
    await other.pause()
    assert.equal(await other.kill(), true)
    await rejects(other.getInfo(), SandboxNotFoundError)
  })
  check('lifecycle: kill by default', async () => {
    const other = await create({ timeoutMs: 60_000 })
    assert.deepEqual((await other.getInfo()).lifecycle, { onTimeout: 'kill', autoResume: false })
  })
  check('lifecycle: pause at the end, connect resumes', async () => {
    const other = await create({ timeoutMs: 1000, lifecycle: { onTimeout: 'pause' } })
    assert.deepEqual((await other.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false })
    await other.files.write(`${dir}/kept`, run)
    await paused(other)
    await rejects(other.commands.list(), TimeoutError, /sandbox/i)
    const again = await Sandbox.connect(other.sandboxId, { timeoutMs: 60_000 })
    assert.equal(await again.files.read(`${dir}/kept`), run)
  })
  check('lifecycle: autoResume wakes it by traffic', async () => {
    const other = await create({ timeoutMs: 1000, lifecycle: { onTimeout: 'pause', autoResume: true } })
    assert.deepEqual((await other.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true })
    await other.files.write(`${dir}/kept`, run)
    await paused(other)
    assert.equal(await other.files.read(`${dir}/kept`), run)
    assert.equal(await state(other), 'running')
  })
})

// ---- around a sandbox: metrics, network, snapshots, servers in it -------------------------------

group('around', { control: true }, () => {
  const unknownId = 'i' + 'z'.repeat(19) + '2'

  check('metrics: numbers that make sense', async () => {
    const samples = await until('a sample', async () => { const got = await sbx.getMetrics(); return got.length && got }, 15_000)
    const { timestamp, cpuUsedPct, cpuCount, memUsed, memTotal, memCache, diskUsed, diskTotal } = samples.at(-1)
    near(timestamp.getTime(), Date.now(), 60_000, 'timestamp')
    assert.ok(cpuCount > 0 && cpuUsedPct >= 0)
    assert.ok(memTotal >= memUsed && memUsed > 0 && memCache >= 0)
    assert.ok(diskTotal >= diskUsed && diskUsed > 0)
  })
  check('metrics: start and end', async () => {
    assert.deepEqual(await sbx.getMetrics({ start: new Date(Date.now() - 7200_000), end: new Date(Date.now() - 3600_000) }), [])
  })
  check('metrics of an unknown id', () => rejects(Sandbox.getMetrics(unknownId), SandboxNotFoundError))

  check('network: given on create, in getInfo', async () => {
    const other = await create({ timeoutMs: 60_000, network: { allowOut: ['1.1.1.1'], denyOut: ['0.0.0.0/0'] } })
    const { network } = await other.getInfo()
    assert.deepEqual([network.allowOut, network.denyOut], [['1.1.1.1'], ['0.0.0.0/0']])
  })
  check('network: update replaces, what is omitted is cleared', async () => {
    const other = await create({ timeoutMs: 60_000, network: { denyOut: ['10.0.0.0/8'] } })
    await other.updateNetwork({ allowOut: ['1.1.1.1', '8.8.8.8'], denyOut: ['0.0.0.0/0'], allowInternetAccess: false })
    const info = await other.getInfo()
    assert.deepEqual([info.network.allowOut, info.network.denyOut], [['1.1.1.1', '8.8.8.8'], ['0.0.0.0/0']])
    await other.updateNetwork({})
    assert.ok(!(await other.getInfo()).network?.allowOut?.length)
    assert.equal(await other.isRunning(), true)
  })
  check('network: a name in denyOut is refused', () => rejects(sbx.updateNetwork({ denyOut: ['example.com'] }), SandboxError, /denyOut/))
  check('network of an unknown id', () => rejects(Sandbox.updateNetwork(unknownId, {}), SandboxNotFoundError))

  const snapshots = async options => {
    const found = []
    for (const pages = Sandbox.listSnapshots(options); pages.hasNext;) found.push(...await pages.nextItems())
    return found
  }
  check('snapshots: create, list by pages, create from, delete', async () => {
    const source = await create({ timeoutMs: 60_000, envs: { KEPT: run } })
    const file = `${homeDir}/kept` // snapshots keep homes; those of sandboxes that share one have nothing to keep
    await source.files.write(file, 'first')
    const shared = await sbx.files.exists(file)
    const first = await source.createSnapshot({ name: `conformance-${run}` })
    await source.files.write(file, 'second')
    const second = await source.createSnapshot()
    assert.ok(first.names.some(name => name.includes(`conformance-${run}`)))
    assert.deepEqual(second.names, [])
    const all = (await snapshots({ sandboxId: source.sandboxId, limit: 1 })).map(one => one.snapshotId)
    assert.deepEqual(all.sort(), [first.snapshotId, second.snapshotId].sort())
    assert.deepEqual((await snapshots({ name: `conformance-${run}` })).map(one => one.snapshotId), [first.snapshotId])
    await source.kill()
    const copies = []
    for (const [one, content] of [[first, 'first'], [second, 'second']]) {
      const copy = await Sandbox.create(one.snapshotId, { timeoutMs: 60_000 })
      created.add(copy)
      copies.push(copy)
      if (!shared) assert.equal(await copy.files.read(file), content)
      assert.equal((await copy.commands.run('echo -n $KEPT')).stdout, run)
    }
    await rejects(Sandbox.deleteSnapshot(first.snapshotId), SandboxError, /using|use/)
    for (const copy of copies) await copy.kill()
    for (const one of [first, second]) assert.equal(await Sandbox.deleteSnapshot(one.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(first.snapshotId), false)
    assert.deepEqual(await snapshots({ sandboxId: source.sandboxId }), [])
  }, { timeoutMs: 60_000 })
  check('snapshot of an unknown id', () => rejects(Sandbox.createSnapshot(unknownId), SandboxNotFoundError))

  // Names below the domain may not be known to this machine, so: the sandbox URL's address, and getHost's name in the request.
  const ask = (host, { method = 'GET', path = '/', headers = {}, body } = {}) => new Promise((resolve, reject) => {
    const base = new URL(env.E2B_SANDBOX_URL)
    const request = (base.protocol === 'https:' ? https : http).request({
      host: base.hostname, port: base.port, servername: base.hostname, method, path, headers: { host, ...headers },
    }, async response => {
      const parts = []
      for await (const part of response) parts.push(part)
      resolve({ status: response.statusCode, headers: response.headers, text: Buffer.concat(parts).toString() })
    })
    request.on('error', reject).end(body)
  })
  const serve = `
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        out = (self.command + ' ' + self.path + ' ' + self.headers.get('x-mine', '') + ' ').encode() + body
        self.send_response(203)
        self.send_header('content-length', str(len(out)))
        self.send_header('x-theirs', 'yes')
        self.end_headers()
        self.wfile.write(out)
    do_GET = do_POST = do_OPTIONS = answer
server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
`
  const serving = async one => {
    if ((await one.commands.run('command -v python3 || true')).stdout === '') skip('no python3 in the sandbox')
    await one.files.write(`${dir}/serve.py`, serve)
    let out = ''
    await one.commands.run(`python3 ${dir}/serve.py`, { background: true, timeoutMs: 0, onStdout: data => { out += data } })
    return Number(await until('the port', () => out.trim()))
  }
  check('getHost: a server in the sandbox is reached by name', async () => {
    const other = await create({ timeoutMs: 60_000, domain: new URL(env.E2B_SANDBOX_URL).host })
    const port = await serving(other)
    const host = other.getHost(port)
    assert.ok(host.startsWith(`${port}-${other.sandboxId}.`), host)
    const got = await ask(host, { path: '/a?b=c', headers: { 'x-mine': 'm' } })
    assert.deepEqual([got.status, got.text, got.headers['x-theirs']], [203, 'GET /a?b=c m ', 'yes'])
    const large = 'x'.repeat(300_000)
    assert.equal((await ask(host, { method: 'POST', body: large })).text, `POST /  ${large}`)
    // What browsers ask first is the server's to answer.
    const asked = await ask(host, { method: 'OPTIONS', headers: { origin: 'http://x', 'access-control-request-method': 'GET' } })
    assert.deepEqual([asked.status, asked.headers['access-control-allow-origin']], [203, undefined])
    await other.kill()
    assert.equal((await ask(host)).status, 502)
  })
  check('getHost: a port nobody listens on is a 502 that says so', async () => {
    const got = await ask(`9-${sbx.sandboxId}.localhost`)
    assert.equal(got.status, 502)
    const { sandboxId, port, code } = JSON.parse(got.text)
    assert.deepEqual([sandboxId, port, code], [sbx.sandboxId, 9, 502])
  })
  check('traffic access token: wanted by ports that are not public', async () => {
    const other = await create({ timeoutMs: 60_000, network: { allowPublicTraffic: false }, domain: new URL(env.E2B_SANDBOX_URL).host })
    assert.ok(other.trafficAccessToken)
    const host = other.getHost(await serving(other))
    assert.equal((await ask(host)).status, 403)
    assert.equal((await ask(host, { headers: { 'e2b-traffic-access-token': 'wrong' } })).status, 403)
    assert.equal((await ask(host, { headers: { 'e2b-traffic-access-token': other.trafficAccessToken } })).status, 203)
  })
})

// ---- errors: credentials and dead sandboxes -----------------------------------------------------

group('errors', {}, () => {
  const apiKey = `e2b_${'0123456789abcdef'.repeat(2)}${run}`
  const refused = { control: true }

  check('wrong API key: create', () => rejects(create({ apiKey }), AuthenticationError, /Unauthorized/), refused)
  check('wrong API key: list', () => rejects(Sandbox.list({ apiKey }).nextItems(), AuthenticationError), refused)
  check('wrong API key: getInfo', () => rejects(Sandbox.getInfo(sbx.sandboxId, { apiKey }), AuthenticationError), refused)
  check('wrong API key: kill does nothing', async () => {
    const other = await create({ timeoutMs: 60_000 })
    await rejects(Sandbox.kill(other.sandboxId, { apiKey }), AuthenticationError)
    assert.equal(await other.isRunning(), true)
  }, refused)

  let deadOne
  const dead = async () => {
    if (!deadOne) { deadOne = await create({ timeoutMs: 60_000 }); await deadOne.kill() }
    return deadOne
  }
  const gone = { control: true }
  check('killed sandbox: commands.run', async () => rejects((await dead()).commands.run('true'), SandboxNotFoundError), gone)
  check('killed sandbox: commands.list', async () => rejects((await dead()).commands.list(), TimeoutError, /sandbox/i), gone)
  check('killed sandbox: files.read', async () => rejects((await dead()).files.read('/etc/hostname'), TimeoutError, /sandbox/i), gone)
  check('killed sandbox: files.write', async () => rejects((await dead()).files.write(`${dir}/x`, 'x'), TimeoutError, /sandbox/i), gone)
  check('killed sandbox: files.list', async () => rejects((await dead()).files.list('/'), TimeoutError, /sandbox/i), gone)
  check('killed sandbox: connect, setTimeout', async () => {
    await rejects(Sandbox.connect((await dead()).sandboxId), SandboxNotFoundError)
    await rejects((await dead()).setTimeout(60_000), SandboxNotFoundError)
  }, gone)
  check('unknown sandbox id on the data plane', async () => {
    const nobody = attach(`i${run}${run}`, 'token')
    await rejects(nobody.files.read('/etc/hostname'), TimeoutError)
    assert.equal(await nobody.isRunning(), false)
  }, gone)

  // Every sandbox of the current SDK is a secured one; a bare envd only after /init gave it a token.
  const token = (what, fn) => check(`wrong access token: ${what}`, async () => {
    if (envdUrl && !sbx.envdAccessToken) skip('this envd has no access token')
    assert.ok(sbx.envdAccessToken, 'create gave no envdAccessToken')
    await fn(attach(sbx.sandboxId, sbx.envdAccessToken.replace(/.$/, last => (last === 'x' ? 'y' : 'x'))), attach(sbx.sandboxId))
  })
  token('commands.run', async (wrong, none) => {
    for (const one of [wrong, none]) await rejects(one.commands.run('true'), AuthenticationError)
  })
  token('commands.list', async (wrong, none) => {
    for (const one of [wrong, none]) await rejects(one.commands.list(), AuthenticationError)
  })
  token('files.list', async (wrong, none) => {
    for (const one of [wrong, none]) await rejects(one.files.list('/'), AuthenticationError)
  })
  token('files.read', async (wrong, none) => {
    for (const one of [wrong, none]) await rejects(one.files.read('/etc/hostname'), AuthenticationError)
  })
  token('files.write writes nothing', async (wrong, none) => {
    for (const one of [wrong, none]) await rejects(one.files.write(`${dir}/refused`, 'x'), AuthenticationError)
    assert.equal(await sbx.files.exists(`${dir}/refused`), false)
  })
  token('the health probe needs none', async (wrong, none) => {
    for (const one of [wrong, none]) assert.equal(await one.isRunning(), true)
  })
})

// ---- commands -----------------------------------------------------------------------------------

group('commands', {}, () => {
  const sh = (command, options) => sbx.commands.run(command, options)
  const listed = async pid => (await sbx.commands.list()).find(one => one.pid === pid)

  check('run: stdout, stderr, exit code', async () => {
    const result = await sh('echo out; echo err >&2')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode, result.error], ['out\n', 'err\n', 0, undefined])
  })
  check('run: no output', async () => {
    const result = await sh('true')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['', '', 0])
  })
  check('run: a login bash', async () => {
    assert.equal((await sh('shopt -q login_shell && echo "login $BASH_VERSION" | cut -d" " -f1')).stdout, 'login\n')
  })
  check('CommandExitError carries code, stdout, stderr, error', async () => {
    const error = await rejects(sh('echo out; echo err >&2; exit 3'), CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout, error.stderr, error.error], [3, 'out\n', 'err\n', 'exit status 3'])
  })
  check('CommandExitError: exit codes 1 and 255', async () => {
    assert.equal((await rejects(sh('false'), CommandExitError)).exitCode, 1)
    assert.equal((await rejects(sh('exit 255'), CommandExitError)).exitCode, 255)
  })
  check('CommandExitError: command not found is 127', async () => {
    const error = await rejects(sh('no-such-command-here'), CommandExitError)
    assert.equal(error.exitCode, 127)
    assert.match(error.stderr, /no-such-command-here.*not found/)
  })
  check('signal death: SIGKILL', async () => {
    const error = await rejects(sh('echo before; kill -9 $$'), CommandExitError)
    assert.deepEqual([error.exitCode, error.error, error.stdout], [-1, 'signal: killed', 'before\n'])
  })
  check('signal death: SIGTERM', async () => {
    const error = await rejects(sh('kill -TERM $$; sleep 5'), CommandExitError)
    assert.deepEqual([error.exitCode, error.error], [-1, 'signal: terminated'])
  })
  check('signal death of a grandchild is 128 + n of the shell', async () => {
    assert.equal((await rejects(sh(`sh -c 'kill -9 $$'; exit $?`), CommandExitError)).exitCode, 137)
  })

  check('callbacks: chunks arrive in order and while it runs', async () => {
    const seen = []
    const first = { at: 0 }
    const note = stream => data => { first.at ||= Date.now(); seen.push(`${stream}:${data}`) }
    const result = await sh('for i in 1 2 3; do echo $i; sleep 0.2; echo $i >&2; sleep 0.2; done',
      { onStdout: note('out'), onStderr: note('err') })
    assert.deepEqual(seen, ['out:1\n', 'err:1\n', 'out:2\n', 'err:2\n', 'out:3\n', 'err:3\n'])
    assert.ok(Date.now() - first.at > 700, `the first chunk came only ${Date.now() - first.at} ms before the end`)
    assert.deepEqual([result.stdout, result.stderr], ['1\n2\n3\n', '1\n2\n3\n'])
  })
  check('callbacks: a partial line is not held back', async () => {
    let atPrompt = 0
    const result = await sh('printf prompt; sleep 0.6; echo', { onStdout: () => { atPrompt ||= Date.now() } })
    assert.ok(Date.now() - atPrompt > 400, 'the text without a newline came only at the end')
    assert.equal(result.stdout, 'prompt\n')
  })

  check('quoting: special characters reach the shell untouched', async () => {
    const text = `a'b"c \`d\` $HOME \\n \\\\ !x * ? [y] {1,2} ~ # & | ; < > ( ) %s \t é 🐎`
    assert.equal((await sh(`printf %s ${quote(text)}`)).stdout, text)
  })
  check('quoting: multi-line script with functions and a here-document', async () => {
    const { stdout } = await sh('f() {\n  echo "f $1"\n}\n\nfor i in 1 2; do\n  f "$i"\ndone\ncat <<\'END\'\n$not expanded `here`\nEND\n# a comment, no newline after it')
    assert.equal(stdout, 'f 1\nf 2\n$not expanded `here`\n')
  })
  check('quoting: a 100 KB command', async () => {
    const text = 'x'.repeat(100_000)
    assert.equal((await sh(`printf %s ${text}`)).stdout, text)
  })

  check('UTF-8: characters split over chunks stay whole', async () => {
    let joined = ''
    const { stdout } = await sh(`printf x; yes '𝄞é€' | head -n 40000 | tr -d '\\n'`, { onStdout: data => { joined += data } })
    assert.equal(sha256(stdout), sha256('x' + '𝄞é€'.repeat(40_000)), `${stdout.length} UTF-16 units`)
    assert.equal(joined, stdout)
  })
  check('UTF-8: one character written byte by byte', async () => {
    const { stdout } = await sh(`for b in '\\xf0' '\\x9f' '\\x90' '\\x8e'; do printf "$b"; sleep 0.1; done`)
    assert.equal(stdout, '🐎')
  })
  check('UTF-8: a dangling byte at the end becomes U+FFFD', async () => {
    assert.equal((await sh(`printf 'ok\\xe2'`)).stdout, 'ok\ufffd')
  })
  check('output: 1 MiB on stdout, by hash', async () => {
    let expected = ''
    for (let i = 1; expected.length < 1 << 20; i++) expected += `${i}\n`
    const { stdout } = await sh('seq 1 200000 | head -c 1048576')
    assert.equal(stdout.length, 1 << 20)
    assert.equal(sha256(stdout), sha256(expected.slice(0, 1 << 20)))
  })
  check('output: 1 MiB on stdout and on stderr at once', async () => {
    const { stdout, stderr } = await sh(`head -c 1048576 /dev/zero | tr '\\0' o & head -c 1048576 /dev/zero | tr '\\0' e >&2; wait`)
    assert.ok(stdout === 'o'.repeat(1 << 20), `stdout: ${stdout.length} characters`)
    assert.ok(stderr === 'e'.repeat(1 << 20), `stderr: ${stderr.length} characters`)
  })

  check('envs reach the command and do not leak into the next', async () => {
    const envs = { PLAIN: 'v', SPACED: `a b'c"d $x`, EMPTY: '', UNICODE: 'ž🐎', LINES: 'a\nb' }
    const names = Object.keys(envs)
    const print = `printf '%s|' ${names.map(name => `"$${name}"`).join(' ')}; echo "\${EMPTY-unset}"`
    assert.equal((await sh(print, { envs })).stdout, `${Object.values(envs).join('|')}|\n`)
    assert.equal((await sh(print)).stdout, '|||||unset\n')
  })
  check('environment: HOME, USER and PATH are set', async () => {
    const { stdout } = await sh('echo "$HOME:$(eval echo ~$(id -un))"; echo "$USER:$(id -un)"; [ -n "$PATH" ] && echo path')
    const [home, user, path] = stdout.trim().split('\n')
    for (const pair of [home, user]) assert.match(`${pair}`, /^(.+):\1$/)
    assert.equal(path, 'path')
  })
  check('cwd: absolute', async () => assert.equal((await sh('pwd', { cwd: dir })).stdout, `${dir}\n`))
  check('cwd: relative to the home directory', async () => {
    assert.equal((await sh('[ "$PWD" = "$HOME/' + homeDir + '" ] && echo same', { cwd: homeDir })).stdout, 'same\n')
  })
  check('cwd: missing directory', () => rejects(sh('pwd', { cwd: `${dir}/missing` }), InvalidArgumentError, /does not exist/))
  check('user: root', async () => {
    assert.equal((await sh('id -un; echo $HOME', { user: 'root' })).stdout, 'root\n/root\n')
  })
  check('user: another one, with its own id and home', async () => {
    assert.equal((await sh('id -un; [ "$HOME" = "$(eval echo ~daemon)" ] && echo home', { user: 'daemon', cwd: '/' })).stdout, 'daemon\nhome\n')
  })
  check('user: unknown', () => rejects(sh('true', { user: 'no-such-user' }), AuthenticationError, /no-such-user/))

  check('background: returns at once, wait gives the result', async () => {
    const start = Date.now()
    const handle = await background('sleep 1.5; echo late; echo e >&2')
    assert.ok(Date.now() - start < 1200, `took ${Date.now() - start} ms`)
    assert.ok(Number.isInteger(handle.pid) && handle.pid > 0, `pid ${handle.pid}`)
    assert.equal(handle.exitCode, undefined)
    const result = await handle.wait()
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['late\n', 'e\n', 0])
    assert.equal(handle.exitCode, 0)
  })
  check('background: wait throws CommandExitError', async () => {
    const error = await rejects((await background('echo x; exit 7')).wait(), CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout], [7, 'x\n'])
  })
  check('background: the end waits for children that hold the output', async () => {
    const start = Date.now()
    assert.equal((await sh('(sleep 0.7; echo child) & echo parent')).stdout, 'parent\nchild\n')
    assert.ok(Date.now() - start > 600, `ended after ${Date.now() - start} ms`)
  })
  check('disconnect: no callback after it, the process lives on', async () => {
    let chunks = 0
    const handle = await background(`sleep 0.5; echo x; echo done > ${dir}/survivor`, { onStdout: () => { chunks++ } })
    await handle.disconnect()
    assert.ok(await listed(handle.pid), 'not listed any more')
    await until('the work of the disconnected command', () => sbx.files.exists(`${dir}/survivor`))
    assert.equal(chunks, 0)
  })
  check('connect: later output and exit code of a disconnected command', async () => {
    const handle = await background(`echo early; while [ ! -e ${dir}/go ]; do sleep 0.05; done; echo late; exit 4`)
    await until('the first output', () => handle.stdout === 'early\n')
    await handle.disconnect()
    let streamed = ''
    const again = await sbx.commands.connect(handle.pid, { onStdout: data => { streamed += data } })
    assert.equal(again.pid, handle.pid)
    await sbx.files.write(`${dir}/go`, '')
    const error = await rejects(again.wait(), CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout, streamed], [4, 'late\n', 'late\n'])
  })
  check('connect: two listeners get the same', async () => {
    const first = await background(`while [ ! -e ${dir}/both ]; do sleep 0.05; done; seq 1 1000`)
    const second = await sbx.commands.connect(first.pid)
    await sbx.files.write(`${dir}/both`, '')
    const expected = Array.from({ length: 1000 }, (_, i) => `${i + 1}\n`).join('')
    assert.equal((await first.wait()).stdout, expected)
    assert.equal((await second.wait()).stdout, expected)
  })
  check('connect: unknown pid', () => rejects(sbx.commands.connect(4_000_000), NotFoundError))

  check('list: pid, cmd, args, envs, cwd', async () => {
    const command = `sleep 30 # ${run}`
    const handle = await background(command, { envs: { LISTED: 'yes' }, cwd: dir })
    const info = await listed(handle.pid)
    assert.ok(info, 'not listed')
    assert.deepEqual([info.cmd, info.args, info.envs, info.cwd], ['/bin/bash', ['-l', '-c', command], { LISTED: 'yes' }, dir])
    await handle.kill()
  })
  check('list: an ended command is gone', async () => {
    const handle = await background('true')
    await handle.wait()
    await until('its removal from the list', async () => !(await listed(handle.pid)))
  })

  check('kill: true, the command dies by SIGKILL, then false', async () => {
    const handle = await background('echo up; sleep 30')
    await until('its output', () => handle.stdout === 'up\n')
    assert.equal(await sbx.commands.kill(handle.pid), true)
    const error = await rejects(handle.wait(), CommandExitError)
    assert.deepEqual([error.exitCode, error.error, error.stdout], [-1, 'signal: killed', 'up\n'])
    await until('false from a second kill', async () => (await sbx.commands.kill(handle.pid)) === false)
  })
  check('kill: unknown pid is false', async () => assert.equal(await sbx.commands.kill(4_000_000), false))
  check('kill: through the handle', async () => {
    const handle = await background('sleep 30')
    assert.equal(await handle.kill(), true)
    assert.equal((await rejects(handle.wait(), CommandExitError)).exitCode, -1)
  })

  check('stdin: closed unless asked for', async () => {
    assert.equal((await within(sh('cat; echo end'), 5000, 'cat without stdin')).stdout, 'end\n')
  })
  check('stdin: sendStdin and closeStdin with cat', async () => {
    const handle = await background('cat', { stdin: true })
    await sbx.commands.sendStdin(handle.pid, 'one\n')
    await until('the echo', () => handle.stdout === 'one\n')
    await sbx.commands.sendStdin(handle.pid, 'žtwo 🐎')
    await sbx.commands.closeStdin(handle.pid)
    assert.equal((await handle.wait()).stdout, 'one\nžtwo 🐎')
  })
  check('stdin: through the handle, every byte value', async () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i)
    const handle = await background('sha256sum', { stdin: true })
    await handle.sendStdin(bytes)
    await handle.closeStdin()
    assert.equal((await handle.wait()).stdout.split(' ')[0], sha256(bytes))
  })
  check('stdin: 1 MiB in pieces, by hash', async () => {
    const data = randomBytes(1 << 20)
    const handle = await background('sha256sum', { stdin: true })
    for (let at = 0; at < data.length; at += 1 << 17) await handle.sendStdin(data.subarray(at, at + (1 << 17)))
    await handle.closeStdin()
    assert.equal((await handle.wait()).stdout.split(' ')[0], sha256(data))
  })
  check('stdin: to a command started without it', async () => {
    const handle = await background('sleep 30')
    await rejects(handle.sendStdin('x'), SandboxError, /stdin/)
    await handle.kill()
  })
  check('stdin: to an unknown pid', () => rejects(sbx.commands.sendStdin(4_000_000, 'x'), NotFoundError))
  check('stdin: closing it of an unknown pid', () => rejects(sbx.commands.closeStdin(4_000_000), NotFoundError))
  check('stdin: closing it twice is fine', async () => {
    const handle = await background('cat; sleep 1', { stdin: true })
    await handle.closeStdin()
    await handle.closeStdin()
    assert.equal((await handle.wait()).exitCode, 0)
  })

  check('timeoutMs: TimeoutError near the deadline', async () => {
    const start = Date.now()
    await rejects(sh('echo x; sleep 30', { timeoutMs: 1000 }), TimeoutError, /timeoutMs/)
    const took = Date.now() - start
    assert.ok(took > 900 && took < 6000, `after ${took} ms`)
  })
  check('timeoutMs: the process dies with it', async () => {
    const handle = await background('exec sleep 30', { timeoutMs: 700 })
    assert.ok(await listed(handle.pid))
    await rejects(handle.wait(), TimeoutError)
    await until('its removal from the list', async () => !(await listed(handle.pid)))
  })
  check('timeoutMs: 0 means none', async () => {
    assert.equal((await sh('sleep 0.3; echo done', { timeoutMs: 0 })).stdout, 'done\n')
  })

  check('20 commands at once, each with its own output', async () => {
    const start = Date.now()
    const results = await Promise.all(Array.from({ length: 20 }, (_, i) => sh(`sleep 0.5; echo ${i}; exit 0`)))
    results.forEach((result, i) => assert.equal(result.stdout, `${i}\n`))
    assert.ok(Date.now() - start < 7000, `took ${Date.now() - start} ms, one after the other?`)
  })
})

// ---- terminals ----------------------------------------------------------------------------------

group('pty', {}, () => {
  // A terminal and what it shows; its text grows, so `shows` looks for what was printed, never for what was typed.
  async function terminal(options = {}) {
    const decoder = new TextDecoder()
    const term = { text: '' }
    term.onData = data => { term.text += decoder.decode(data, { stream: true }) }
    term.handle = await sbx.pty.create({ cols: 80, rows: 24, onData: term.onData, ...options })
    term.pid = term.handle.pid
    pids.add(term.pid)
    return term
  }
  const type = (term, text) => sbx.pty.sendInput(term.pid, new TextEncoder().encode(text))
  const shows = (term, text) => until(`"${text}" on the terminal`, () => term.text.includes(text))
  const killed = async term => { await sbx.pty.kill(term.pid); return rejects(term.handle.wait(), CommandExitError) }

  check('create: a login shell on a terminal of its size', async () => {
    const term = await terminal({ cols: 101, rows: 31 })
    await type(term, `stty size; tty; shopt -q login_shell && echo "$TERM=$LANG=$LC_ALL"\n`)
    await shows(term, '31 101\r\n/dev/pts/')
    await shows(term, '\r\nxterm-256color=C.UTF-8=C.UTF-8\r\n')
    await killed(term)
  })
  check('create: envs, cwd, and the list', async () => {
    const term = await terminal({ envs: { MINE: 'yes', LANG: 'C' }, cwd: dir })
    await type(term, 'echo "$MINE=$LANG=$PWD"\n')
    await shows(term, `yes=C=${dir}\r\n`)
    const info = (await sbx.commands.list()).find(one => one.pid === term.pid)
    assert.ok(info, 'not listed')
    assert.deepEqual([info.cmd, info.args, info.cwd], ['/bin/bash', ['-i', '-l'], dir])
    await killed(term)
  })
  check('create: unknown user, missing cwd', async () => {
    await rejects(sbx.pty.create({ cols: 80, rows: 24, onData() {}, user: 'no-such-user' }), AuthenticationError, /no-such-user/)
    await rejects(sbx.pty.create({ cols: 80, rows: 24, onData() {}, cwd: `${dir}/missing` }), InvalidArgumentError)
  })
  check('the exit code of the shell', async () => {
    const term = await terminal()
    await type(term, 'exit 3\n')
    assert.equal((await rejects(term.handle.wait(), CommandExitError)).exitCode, 3)
  })
  check('sendInput: UTF-8, every key, 200 KB at once', async () => {
    const term = await terminal()
    await type(term, `stty -echo; echo 're'ady; read -r line; echo "<$line>"\n`)
    await shows(term, 'ready\r\n')
    await type(term, 'žluť 🐎\n')
    await shows(term, '<žluť 🐎>\r\n')
    const text = 'abcdefghijklmnopqrstuvwxyz0123456789\n'.repeat(5400)
    await type(term, `echo 're'ady2; sha256sum\n`)
    await shows(term, 'ready2\r\n')
    await type(term, text + '\x04')
    await shows(term, sha256(text))
    await killed(term)
  })
  check('sendInput: Ctrl+\\ ends what runs', async () => { // not Ctrl+C: a server started in the background has it ignored
    const term = await terminal()
    await type(term, `bash -c "echo 'on'e; exec sleep 100"\n`)
    await shows(term, 'one\r\n')
    await type(term, '\x1c')
    await type(term, `echo 'tw'o\n`)
    await shows(term, 'two\r\n')
    await killed(term)
  })
  check('resize', async () => {
    const term = await terminal()
    await type(term, `trap 'echo "is $(stty size)"' WINCH; echo 're'ady\n`)
    await shows(term, 'ready\r\n')
    await sbx.pty.resize(term.pid, { cols: 132, rows: 43 })
    await type(term, '\n') // bash looks at signals between lines
    await shows(term, 'is 43 132\r\n')
    await killed(term)
  })
  check('kill: true, SIGKILL, then false', async () => {
    const term = await terminal()
    assert.equal(await sbx.pty.kill(term.pid), true)
    const error = await rejects(term.handle.wait(), CommandExitError)
    assert.deepEqual([error.exitCode, error.error], [-1, 'signal: killed'])
    await until('false from a second kill', async () => (await sbx.pty.kill(term.pid)) === false)
  })
  check('connect: the same shell after a disconnect', async () => {
    const term = await terminal()
    await type(term, `KEPT=this; echo 're'ady\n`)
    await shows(term, 'ready\r\n')
    await term.handle.disconnect()
    const before = term.text
    const second = { text: '', pid: term.pid }
    const decoder = new TextDecoder()
    second.handle = await sbx.pty.connect(term.pid, { onData: data => { second.text += decoder.decode(data, { stream: true }) } })
    assert.equal(second.handle.pid, term.pid)
    await type(second, 'echo "<$KEPT>"\n')
    await shows(second, '<this>\r\n')
    assert.equal(term.text, before)
    await killed(second)
  })
  check('unknown pid', async () => {
    const unknown = { pid: 4_000_000 }
    await rejects(sbx.pty.connect(unknown.pid, { onData() {} }), NotFoundError)
    await rejects(type(unknown, 'x'), NotFoundError)
    await rejects(sbx.pty.resize(unknown.pid, { cols: 80, rows: 24 }), NotFoundError)
    assert.equal(await sbx.pty.kill(unknown.pid), false)
  })
  check('input and size are for terminals only, stdin is not', async () => {
    const handle = await background('sleep 30', { stdin: true })
    await rejects(type(handle, 'x'), SandboxError, /tty/)
    await rejects(sbx.pty.resize(handle.pid, { cols: 80, rows: 24 }), SandboxError, /tty/)
    await handle.kill()
    const term = await terminal()
    await rejects(sbx.commands.sendStdin(term.pid, 'x'), SandboxError, /pty/)
    await rejects(sbx.commands.closeStdin(term.pid), SandboxError, /PTY/)
    await killed(term)
  })
  check('timeoutMs: TimeoutError, and the shell dies', async () => {
    const term = await terminal({ timeoutMs: 700 })
    await rejects(term.handle.wait(), TimeoutError)
    await until('its removal from the list', async () => !(await sbx.commands.list()).some(one => one.pid === term.pid))
  })
})

// ---- files --------------------------------------------------------------------------------------

group('files', {}, () => {
  let count = 0
  const fresh = name => `${dir}/f${++count}-${name}`
  const cat = async path => (await sbx.commands.run(`cat ${quote(path)}`)).stdout
  const big = () => randomBytes(5 << 20)
  const sum = async path => (await sbx.commands.run(`sha256sum < ${quote(path)}`)).stdout.split(' ')[0]
  const names = entries => entries.map(one => one.path.slice(dir.length + 1))

  check('write and read text', async () => {
    const path = fresh('text')
    const text = 'line one\nžluťoučký 🐎\r\n\ttab'
    const info = await sbx.files.write(path, text)
    assert.deepEqual([info.name, info.path, info.type], [path.slice(dir.length + 1), path, FileType.FILE])
    assert.equal(await sbx.files.read(path), text)
    assert.equal(await cat(path), text)
  })
  check('write and read bytes', async () => {
    const path = fresh('bytes')
    const bytes = Uint8Array.from({ length: 1024 }, (_, i) => i & 255)
    await sbx.files.write(path, bytes.buffer)
    assert.deepEqual(await sbx.files.read(path, { format: 'bytes' }), bytes)
    assert.equal(await sum(path), sha256(bytes))
  })
  check('write and read a Blob', async () => {
    const path = fresh('blob')
    await sbx.files.write(path, new Blob(['blob ', 'ž']))
    assert.equal(await (await sbx.files.read(path, { format: 'blob' })).text(), 'blob ž')
  })
  check('write and read an empty file', async () => {
    const path = fresh('empty')
    await sbx.files.write(path, '')
    assert.equal(await sbx.files.read(path), '')
    assert.equal((await sbx.files.read(path, { format: 'bytes' })).length, 0)
    assert.equal((await sbx.files.getInfo(path)).size, 0)
  })
  check('5 MiB, by hash', async () => {
    const [path, data] = [fresh('big'), big()]
    await sbx.files.write(path, new Blob([data]))
    assert.equal(await sum(path), sha256(data))
    assert.equal(sha256(await sbx.files.read(path, { format: 'bytes' })), sha256(data))
  })
  check('5 MiB as streams, by hash', async () => {
    const [path, data] = [fresh('stream'), big()]
    await sbx.files.write(path, new Blob([data]).stream())
    assert.equal(await sum(path), sha256(data))
    const hash = createHash('sha256')
    for await (const chunk of await sbx.files.read(path, { format: 'stream' })) hash.update(chunk)
    assert.equal(hash.digest('hex'), sha256(data))
  })
  check('octet-stream upload of text', async () => {
    const path = fresh('octets')
    const info = await sbx.files.write(path, 'octets', { useOctetStream: true })
    assert.equal(info.path, path)
    assert.equal(await cat(path), 'octets')
  })
  check('gzip upload and download', async () => {
    const [path, text] = [fresh('gzip'), 'compressible '.repeat(10_000)]
    await sbx.files.write(path, text, { gzip: true })
    assert.equal(await sum(path), sha256(text))
    assert.equal(await sbx.files.read(path, { gzip: true }), text)
  })
  check('several files in one call', async () => {
    const paths = ['a', 'b b', 'deep/c+é%23#', 'deep/er/d'].map(name => `${dir}/several/${name}`)
    const infos = await sbx.files.write(paths.map((path, i) => ({ path, data: i === 1 ? '' : `data ${i}` })))
    assert.deepEqual(infos.map(one => one.path), paths)
    assert.deepEqual(await Promise.all(paths.map(path => sbx.files.read(path))), ['data 0', '', 'data 2', 'data 3'])
  })
  check('several files in one call: 300, answered in their order', async () => {
    const files = Array.from({ length: 300 }, (_, i) => ({ path: `${dir}/three-hundred/${i % 7}/${i}`, data: `${i}`.repeat(i % 50) }))
    assert.deepEqual((await sbx.files.write(files)).map(one => one.path), files.map(one => one.path))
    assert.deepEqual(await Promise.all(files.slice(100, 110).map(one => sbx.files.read(one.path))), files.slice(100, 110).map(one => one.data))
  })
  check('several files in one call: those before one that fails are written, those behind it are not', async () => {
    const files = [`${dir}/partly/a`, dir, `${dir}/partly/b`].map(path => ({ path, data: 'x' }))
    await rejects(sbx.files.write(files), InvalidArgumentError, /directory/)
    assert.equal(await sbx.files.exists(files[0].path), true)
    assert.equal(await sbx.files.exists(files[2].path), false)
  })
  check('write creates parents', async () => {
    const path = `${dir}/parents/x/y/z/file`
    await sbx.files.write(path, 'deep')
    assert.equal(await sbx.files.read(path), 'deep')
    assert.equal((await sbx.files.getInfo(`${dir}/parents/x`)).type, FileType.DIR)
  })
  check('overwrite leaves nothing of the longer old content', async () => {
    const path = fresh('overwrite')
    await sbx.files.write(path, 'a much longer first content')
    await sbx.files.write(path, 'short')
    assert.equal(await sbx.files.read(path), 'short')
  })
  for (const name of ['with space', 'žluťoučký 🐎', 'a+b', '100%', '%20%2F', 'a#b', 'a&b=c?d', `it's "so"`, 'back\\slash;$HOME', '.hidden', '-dash', '中文/子 dir']) {
    check(`path: ${name}`, async () => {
      const path = `${dir}/paths/${name}`
      assert.equal((await sbx.files.write(path, name)).path, path)
      assert.equal(await sbx.files.read(path), name)
      assert.equal(await cat(path), name)
      assert.equal((await sbx.files.getInfo(path)).path, path)
      await sbx.files.remove(path)
      assert.equal(await sbx.files.exists(path), false)
    })
  }
  check('path: relative and ~ are below the home directory', async () => {
    await sbx.files.write(`${homeDir}/one`, 'relative')
    assert.equal((await sbx.commands.run(`cat ~/${homeDir}/one`)).stdout, 'relative')
    assert.equal(await sbx.files.read(`~/${homeDir}/one`), 'relative')
    const home = (await sbx.commands.run('echo "$HOME"')).stdout.trim()
    assert.equal((await sbx.files.getInfo(`${homeDir}/one`)).path, `${home}/${homeDir}/one`)
  })

  check('list: depth 1 and 2, in order', async () => {
    const base = `${dir}/tree`
    await sbx.files.write(['b/two', 'b/deep/three', 'a', 'c'].map(name => ({ path: `${base}/${name}`, data: name })))
    assert.deepEqual(names(await sbx.files.list(base)), ['tree/a', 'tree/b', 'tree/c'])
    assert.deepEqual(names(await sbx.files.list(base, { depth: 1 })), ['tree/a', 'tree/b', 'tree/c'])
    assert.deepEqual(names(await sbx.files.list(base, { depth: 2 })), ['tree/a', 'tree/b', 'tree/b/deep', 'tree/b/two', 'tree/c'])
    assert.deepEqual((await sbx.files.list(base, { depth: 3 })).length, 6)
  })
  check('list: fields equal those of getInfo', async () => {
    await sbx.files.write(`${dir}/fields/file`, 'x')
    const [entry] = await sbx.files.list(`${dir}/fields`)
    assert.deepEqual(entry, await sbx.files.getInfo(`${dir}/fields/file`))
  })
  check('list: an empty directory', async () => {
    await sbx.files.makeDir(`${dir}/nothing`)
    assert.deepEqual(await sbx.files.list(`${dir}/nothing`), [])
  })
  check('list: 500 entries', async () => {
    await sbx.commands.run(`mkdir ${dir}/many && cd ${dir}/many && touch $(seq 1000 1499)`)
    const entries = await sbx.files.list(`${dir}/many`)
    assert.deepEqual(entries.map(one => one.name), Array.from({ length: 500 }, (_, i) => `${1000 + i}`))
  })
  check('list: missing directory', () => rejects(sbx.files.list(`${dir}/missing`), FileNotFoundError))
  check('list: a file', async () => {
    const path = fresh('not-a-dir')
    await sbx.files.write(path, '')
    await rejects(sbx.files.list(path), InvalidArgumentError, /not a directory/)
  })

  check('getInfo: a file', async () => {
    const path = fresh('info')
    await sbx.files.write(path, '12345')
    await sbx.commands.run(`chmod 640 ${path}`)
    const info = await sbx.files.getInfo(path)
    assert.deepEqual([info.name, info.path, info.type, info.size, info.mode, info.permissions, info.symlinkTarget],
      [path.slice(dir.length + 1), path, FileType.FILE, 5, 0o640, '-rw-r-----', undefined])
  })
  check('getInfo: a directory', async () => {
    const path = fresh('info-dir')
    await sbx.files.makeDir(path)
    await sbx.commands.run(`chmod 750 ${path}`)
    const info = await sbx.files.getInfo(path)
    assert.deepEqual([info.type, info.mode, info.permissions], [FileType.DIR, 0o750, 'drwxr-x---'])
  })
  check('getInfo: owner and group', async () => {
    const path = fresh('owned')
    await sbx.files.write(path, '')
    const info = await sbx.files.getInfo(path)
    assert.equal(`${info.owner} ${info.group}\n`, (await sbx.commands.run(`stat -c '%U %G' ${path}`)).stdout)
    assert.equal(`${info.owner}\n`, (await sbx.commands.run('id -un')).stdout)
  })
  check('getInfo: modification time', async () => {
    const path = fresh('touched')
    await sbx.commands.run(`touch -d '2001-02-03T04:05:06.789Z' ${path}`)
    assert.equal((await sbx.files.getInfo(path)).modifiedTime?.toISOString(), '2001-02-03T04:05:06.789Z')
  })
  check('getInfo: a size over 4 GiB', async () => {
    const path = fresh('sparse')
    await sbx.commands.run(`truncate -s 5368709121 ${path}`)
    assert.equal((await sbx.files.getInfo(path)).size, 5_368_709_121)
    await sbx.files.remove(path)
  })
  check('getInfo: a symbolic link', async () => {
    const path = fresh('link')
    await sbx.commands.run(`echo x > ${path}-target; ln -s ${path}-target ${path}`)
    const info = await sbx.files.getInfo(path)
    assert.deepEqual([info.type, info.symlinkTarget, info.permissions], [FileType.FILE, `${path}-target`, 'Lrwxrwxrwx'])
    assert.equal(await sbx.files.read(path), 'x\n')
  })
  check('getInfo: a broken link exists and is not listed', async () => {
    await sbx.commands.run(`mkdir ${dir}/broken && ln -s nowhere ${dir}/broken/link`)
    assert.equal(await sbx.files.exists(`${dir}/broken/link`), true)
    assert.equal((await sbx.files.getInfo(`${dir}/broken/link`)).type, undefined)
    assert.deepEqual(await sbx.files.list(`${dir}/broken`), [])
  })
  check('getInfo: missing', () => rejects(sbx.files.getInfo(`${dir}/missing`), FileNotFoundError))

  check('exists: file, directory, nothing', async () => {
    const path = fresh('exists')
    assert.equal(await sbx.files.exists(path), false)
    await sbx.files.write(path, '')
    assert.equal(await sbx.files.exists(path), true)
    assert.equal(await sbx.files.exists(dir), true)
    assert.equal(await sbx.files.exists(`${dir}/a/b/c`), false)
  })
  check('makeDir: true, then false, with parents', async () => {
    assert.equal(await sbx.files.makeDir(`${dir}/made/x/y`), true)
    assert.equal(await sbx.files.makeDir(`${dir}/made/x/y`), false)
    assert.equal(await sbx.files.makeDir(`${dir}/made`), false)
    assert.equal((await sbx.commands.run(`stat -c %F ${dir}/made/x/y`)).stdout, 'directory\n')
  })
  check('makeDir: over a file', async () => {
    const path = fresh('in-the-way')
    await sbx.files.write(path, '')
    await rejects(sbx.files.makeDir(path), InvalidArgumentError)
  })
  check('rename: a file', async () => {
    const [from, to] = [fresh('from'), fresh('to')]
    await sbx.files.write(from, 'moved')
    const info = await sbx.files.rename(from, to)
    assert.deepEqual([info.path, info.type, info.size], [to, FileType.FILE, 5])
    assert.equal(await sbx.files.exists(from), false)
    assert.equal(await sbx.files.read(to), 'moved')
  })
  check('rename: over an existing file', async () => {
    const [from, to] = [fresh('new'), fresh('old')]
    await sbx.files.write([{ path: from, data: 'new' }, { path: to, data: 'old' }])
    await sbx.files.rename(from, to)
    assert.equal(await sbx.files.read(to), 'new')
  })
  check('rename: a directory', async () => {
    const [from, to] = [fresh('dir-from'), fresh('dir-to')]
    await sbx.files.write(`${from}/inside`, 'x')
    assert.equal((await sbx.files.rename(from, to)).type, FileType.DIR)
    assert.equal(await sbx.files.read(`${to}/inside`), 'x')
  })
  check('rename: missing', () => rejects(sbx.files.rename(`${dir}/missing`, `${dir}/other`), FileNotFoundError))
  check('remove: a file', async () => {
    const path = fresh('remove')
    await sbx.files.write(path, '')
    await sbx.files.remove(path)
    assert.equal(await sbx.files.exists(path), false)
  })
  check('remove: a directory with content', async () => {
    const path = fresh('remove-dir')
    await sbx.files.write(`${path}/a/b`, '')
    await sbx.files.remove(path)
    assert.equal(await sbx.files.exists(path), false)
  })
  check('remove: nothing there is fine', async () => assert.equal(await sbx.files.remove(`${dir}/missing`), undefined))

  check('read: missing', async () => {
    const error = await rejects(sbx.files.read(`${dir}/missing`), FileNotFoundError, /missing/)
    assert.ok(error instanceof NotFoundError)
  })
  check('read: missing, as a stream', () => rejects(sbx.files.read(`${dir}/missing`, { format: 'stream' }), FileNotFoundError))
  check('read: a directory', () => rejects(sbx.files.read(dir), InvalidArgumentError, /directory/))
  check('write: onto a directory', () => rejects(sbx.files.write(dir, 'x'), InvalidArgumentError, /directory/))
  check('user: owns what it writes', async () => {
    const path = `${dir}/user/daemon/file`
    await sbx.files.write(path, 'x', { user: 'daemon' })
    const owners = await sbx.commands.run(`stat -c %U ${path} ${dir}/user/daemon`)
    assert.equal(owners.stdout, 'daemon\ndaemon\n')
    await sbx.files.makeDir(`${dir}/user/made`, { user: 'daemon' })
    assert.equal((await sbx.files.getInfo(`${dir}/user/made`)).owner, 'daemon')
  })
  check('user: unknown', async () => {
    const user = 'no-such-user'
    await rejects(sbx.files.read(dir, { user }), AuthenticationError, /no-such-user/)
    await rejects(sbx.files.write(fresh('x'), 'x', { user }), AuthenticationError, /no-such-user/)
    await rejects(sbx.files.list(dir, { user }), AuthenticationError, /no-such-user/)
  })
})

// ---- code interpreter: port 49999 ---------------------------------------------------------------

group('code', { control: true }, () => {
  // One sandbox for all checks; its default context is shared, so names in it are unique per check.
  let shared
  const open = () => shared ??= (async () => {
    const made = template ? await CodeSandbox.create(template, { timeoutMs: 900_000 }) : await CodeSandbox.create({ timeoutMs: 900_000 })
    created.add(made)
    return made
  })()
  const run = async (code, options) => (await open()).runCode(code, options)
  const lines = logs => logs.join('')

  check('result: value of the last expression', async () => {
    const execution = await run('x1 = 20\nx1 += 1\nx1 * 2')
    assert.equal(execution.text, '42')
    assert.equal(execution.error, undefined)
    assert.equal(execution.results.length, 1)
    assert.equal(execution.results[0].isMainResult, true)
    assert.deepEqual(execution.logs, { stdout: [], stderr: [] })
  })
  check('result: none', async () => {
    const execution = await run('x2 = 1')
    assert.equal(execution.text, undefined)
    assert.deepEqual(execution.results, [])
  })
  check('result: a text without its quotes', async () => assert.equal((await run("'it is ' + 'text'")).text, 'it is text'))
  check('result: unicode', async () => assert.equal((await run("'é 漢 😀'")).text, 'é 漢 😀'))
  check('state: variables live on', async () => {
    await run('def x3(n):\n  return n * 7\nimport math')
    assert.equal((await run('x3(6) + math.floor(0.5)')).text, '42')
  })
  check('state: the count of executions goes up', async () => {
    const first = await run('1'), second = await run('2')
    assert.ok(first.executionCount > 0)
    assert.equal(second.executionCount, first.executionCount + 1)
  })
  check('logs: stdout and stderr', async () => {
    const execution = await run('import sys\nprint("out")\nprint("err", file=sys.stderr)\nprint("no line end", end="")')
    assert.equal(lines(execution.logs.stdout), 'out\nno line end')
    assert.equal(lines(execution.logs.stderr), 'err\n')
  })
  check('logs: of subprocesses, in order', async () => {
    const execution = await run('import os\nprint("one")\nos.system("echo two; echo three >&2")\nprint("four")')
    assert.equal(lines(execution.logs.stdout), 'one\ntwo\nfour\n')
    assert.equal(lines(execution.logs.stderr), 'three\n')
  })
  check('logs: a megabyte', async () => {
    const execution = await run('for i in range(20000): print("x" * 49)')
    assert.equal(lines(execution.logs.stdout).length, 1_000_000)
  })
  check('callbacks: while the code runs', async () => {
    const sandbox = await open(), path = `/tmp/code-early-${dir.slice(5)}`, seen = []
    const execution = await run(`
import os, time
print("early")
while not os.path.exists('${path}'): time.sleep(0.02)
os.remove('${path}')
print("late")
7`, {
      onStdout: message => { seen.push(['stdout', message.line]); if (seen.length === 1) return sandbox.files.write(path, '') },
      onResult: result => { seen.push(['result', result.text]) },
    })
    assert.deepEqual(seen, [['stdout', 'early\n'], ['stdout', 'late\n'], ['result', '7']])
    assert.equal(execution.text, '7')
  })
  check('callbacks: onStderr and onError', async () => {
    const seen = []
    await run('import sys\nprint("oops", file=sys.stderr)\nraise ValueError("bad")', {
      onStderr: message => { seen.push(message.line); assert.equal(message.error, true) },
      onError: error => { seen.push(error.name, error.value) },
    })
    assert.deepEqual(seen, ['oops\n', 'ValueError', 'bad'])
  })
  check('error: an exception', async () => {
    const { error, results } = await run('def x4():\n  return 1 / 0\nx4()')
    assert.equal(error.name, 'ZeroDivisionError')
    assert.equal(error.value, 'division by zero')
    assert.match(error.traceback, /line 2, in x4[\s\S]*return 1 \/ 0/)
    assert.deepEqual(results, [])
  })
  check('error: a syntax error', async () => {
    const { error } = await run('x5 = = 1')
    assert.equal(error.name, 'SyntaxError')
    assert.match(error.traceback, /x5 = = 1/)
  })
  check('error: what was printed before stays', async () => {
    const execution = await run('print("before")\nundefined_name')
    assert.equal(lines(execution.logs.stdout), 'before\n')
    assert.equal(execution.error.name, 'NameError')
  })
  check('error: sys.exit ends the run, not the context', async () => {
    await run('x6 = "still here"')
    assert.equal((await run('import sys\nsys.exit(3)')).error.name, 'SystemExit')
    assert.equal((await run('x6')).text, 'still here')
  })
  check('display: every format', async () => {
    const { results } = await run(`
class All:
  def __repr__(self): return 'plain'
  def _repr_html_(self): return '<b>h</b>'
  def _repr_markdown_(self): return '*m*'
  def _repr_svg_(self): return '<svg/>'
  def _repr_png_(self): return b'\\x89PNG'
  def _repr_jpeg_(self): return b'\\xff\\xd8'
  def _repr_pdf_(self): return b'%PDF'
  def _repr_latex_(self): return '$l$'
  def _repr_json_(self): return {'j': [1, None]}
  def _repr_javascript_(self): return 'alert(1)'
  def _repr_mimebundle_(self, include=None, exclude=None):
    return {'e2b/data': {'a': [1, 2]}, 'x-test/own': {'own': True}}
All()`)
    const [result] = results
    const base64 = text => Buffer.from(text, 'latin1').toString('base64')
    assert.deepEqual({ ...result.raw, type: undefined, is_main_result: undefined }, {
      text: 'plain', html: '<b>h</b>', markdown: '*m*', svg: '<svg/>', png: base64('\x89PNG'), jpeg: base64('\xff\xd8'),
      pdf: base64('%PDF'), latex: '$l$', json: { j: [1, null] }, javascript: 'alert(1)', data: { a: [1, 2] },
      extra: { 'x-test/own': { own: true } }, type: undefined, is_main_result: undefined,
    })
    assert.deepEqual(result.formats(), ['html', 'markdown', 'svg', 'png', 'jpeg', 'pdf', 'latex', 'json', 'javascript', 'data'])
  })
  check('display: in the middle of a run', async () => {
    const { results, text } = await run('display("one", 2)\n3')
    assert.deepEqual(results.map(one => [one.text, one.isMainResult]), [['one', false], ['2', false], ['3', true]])
    assert.equal(text, '3')
  })
  check('display: a chart', async () => {
    const chart = { type: 'bar', title: 'T', elements: [{ label: 'a', value: 1, group: 'g' }] }
    const { results } = await run(`
class Chart:
  def _repr_mimebundle_(self, include=None, exclude=None): return {'e2b/chart': ${JSON.stringify(chart)}}
Chart()`)
    assert.deepEqual(results[0].chart, chart)
  })
  check('envs: of one run only', async () => {
    assert.equal((await run('import os\nos.environ["X_CODE"]', { envs: { X_CODE: 'for once' } })).text, 'for once')
    assert.equal((await run('str(os.environ.get("X_CODE"))')).text, 'None')
  })
  check('envs: of the sandbox', async () => {
    const made = await CodeSandbox.create(...(template ? [template] : []), { timeoutMs: 60_000, envs: { X_ALL: 'always' } })
    created.add(made)
    assert.equal((await made.runCode('import os\nos.environ["X_ALL"]')).text, 'always')
    assert.equal((await made.runCode('os.environ["X_ALL"]', { envs: { X_ALL: 'once' } })).text, 'once')
    assert.equal((await made.runCode('os.environ["X_ALL"]')).text, 'always')
  })
  check('files: shared with the sandbox', async () => {
    const sandbox = await open()
    await sandbox.files.write('/tmp/' + 'code-' + dir.slice(5), 'by the files API')
    const { text } = await run(`import os\npath = '/tmp/code-${dir.slice(5)}'\ncontent = open(path).read()\nos.remove(path)\ncontent`)
    assert.equal(text, 'by the files API')
  })
  check('language: python by name', async () => assert.equal((await run('6 * 7', { language: 'python' })).text, '42'))
  check('language: unknown', () => rejects(run('1', { language: 'brainfuck' }), SandboxError))
  check('top-level await', async () =>
    assert.equal((await run('import asyncio\nawait asyncio.sleep(0.01, "awaited")')).text, 'awaited'))

  check('context: has state of its own', async () => {
    const sandbox = await open()
    const context = await sandbox.createCodeContext()
    assert.ok(context.id && context.cwd)
    assert.equal(context.language, 'python')
    await run('x7 = "shared"')
    await run('x7 = "own"', { context })
    assert.equal((await run('x7')).text, 'shared')
    assert.equal((await run('x7', { context })).text, 'own')
  })
  check('context: cwd', async () => {
    const sandbox = await open()
    const context = await sandbox.createCodeContext({ cwd: '/usr', language: 'python' })
    assert.equal(context.cwd, '/usr')
    assert.equal((await run('import os\nos.getcwd()', { context })).text, '/usr')
  })
  check('context: list, remove', async () => {
    const sandbox = await open()
    const context = await sandbox.createCodeContext()
    const ids = async () => (await sandbox.listCodeContexts()).map(one => one.id)
    assert.ok((await ids()).includes(context.id))
    await sandbox.removeCodeContext(context)
    assert.ok(!(await ids()).includes(context.id))
    await rejects(run('1', { context }), NotFoundError, /not found/)
    await rejects(sandbox.removeCodeContext(context.id), NotFoundError, /not found/)
  })
  check('context: restart forgets', async () => {
    const sandbox = await open()
    const context = await sandbox.createCodeContext()
    await run('x8 = 1', { context })
    await sandbox.restartCodeContext(context)
    const { error, executionCount } = await run('x8', { context })
    assert.equal(error.name, 'NameError')
    assert.equal(executionCount, 1)
    await rejects(sandbox.restartCodeContext('no-such-context'), NotFoundError)
  })
  check('context: restart ends what is running', async () => {
    const sandbox = await open()
    const context = await sandbox.createCodeContext()
    let started
    const begun = new Promise(resolve => { started = resolve })
    const running = run('print("go")\nimport time\ntime.sleep(60)', { context, onStdout: started })
    await begun
    await sandbox.restartCodeContext(context)
    assert.equal((await running).error.name, 'UnexpectedEndOfExecution')
  })
  check('context: its process dies', async () => {
    const sandbox = await open()
    const context = await sandbox.createCodeContext()
    assert.equal((await run('import os\nos._exit(1)', { context })).error.name, 'ContextRestarting')
    assert.equal((await run('1 + 1', { context })).text, '2')
  })
  check('context: one run at a time', async () => {
    let started
    const begun = new Promise(resolve => { started = resolve })
    const [first, second] = await Promise.all([
      run('import time\nx9 = [1]\nprint("go")\ntime.sleep(0.5)\nx9.append(2)\nstr(x9)', { onStdout: started }),
      begun.then(() => run('x9.append(3)\nstr(x9)')),
    ])
    assert.equal(first.text, '[1, 2]')
    assert.equal(second.text, '[1, 2, 3]')
  })
  check('context: two at once do not wait for each other', async () => {
    const sandbox = await open()
    const [a, b] = await Promise.all([sandbox.createCodeContext(), sandbox.createCodeContext()])
    const path = `/tmp/code-pair-${dir.slice(5)}`
    const [, second] = await Promise.all([
      run(`import os, time\nwhile not os.path.exists('${path}'): time.sleep(0.02)\nos.remove('${path}')`, { context: a }),
      run(`open('${path}', 'w').close()\n'made'`, { context: b }),
    ])
    assert.equal(second.text, 'made')
  })
  check('timeout: ends the wait and interrupts the code', async () => {
    const path = `/tmp/code-timeout-${dir.slice(5)}`
    await rejects(run(`import time\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  open('${path}', 'w').close()\n  raise`,
      { timeoutMs: 700 }), TimeoutError)
    const { text } = await run(`import os\nthere = os.path.exists('${path}')\nif there: os.remove('${path}')\nthere`)
    assert.equal(text, 'True')
  })
  check('health', async () => {
    const sandbox = await open()
    const answer = await fetch(`${env.E2B_SANDBOX_URL}/health`,
      { headers: { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '49999' } })
    assert.equal(answer.status, 200)
    assert.equal(await answer.json(), 'OK')
  })
  check('requests: malformed', async () => {
    const sandbox = await open()
    const post = async body => (await fetch(`${env.E2B_SANDBOX_URL}/execute`, { method: 'POST', body,
      headers: { 'Content-Type': 'application/json', 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '49999' } }))
    const answer = await post('{}')
    assert.equal(answer.status, 422)
    assert.ok((await answer.json()).detail)
    assert.equal((await post('not json')).status, 422)
    assert.equal((await post('{"code":"1","context_id":"a","language":"python"}')).status, 400)
  })
  check('stream: ends with end_of_execution', async () => {
    const sandbox = await open()
    const answer = await fetch(`${env.E2B_SANDBOX_URL}/execute`, { method: 'POST', body: '{"code":"print(1)"}',
      headers: { 'Content-Type': 'application/json', 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '49999' } })
    const types = (await answer.text()).trim().split('\n').map(line => JSON.parse(line).type)
    assert.equal(types.at(0), 'number_of_executions')
    assert.equal(types.at(-1), 'end_of_execution')
  })
  check('a killed sandbox', async () => {
    const made = await CodeSandbox.create(...(template ? [template] : []), { timeoutMs: 60_000 })
    created.add(made)
    let started
    const begun = new Promise(resolve => { started = resolve })
    const running = made.runCode('print("go")\nimport time\ntime.sleep(60)', { onStdout: started })
    running.catch(() => {})
    await begun
    await made.kill()
    await rejects(running, TimeoutError, /killed/)
    await rejects(made.runCode('1'), TimeoutError)
  })
})

// ---- watching directories -----------------------------------------------------------------------

group('watch', {}, () => {
  let count = 0
  const fresh = async () => { const path = `${dir}/w${++count}`; await sbx.files.makeDir(path); return path }
  // Starts a watch; `lines` collects "type name", `exits` what ended it.
  async function watch(path, options = {}) {
    const seen = { lines: [], events: [], exits: [] }
    seen.handle = await sbx.files.watchDir(path, event => { seen.events.push(event); seen.lines.push(`${event.type} ${event.name}`) },
      { timeoutMs: 60_000, onExit: error => { seen.exits.push(error) }, ...options })
    seen.has = line => until(line, () => seen.lines.includes(line))
    return seen
  }

  check('create, write, chmod, rename, remove', async () => {
    const path = await fresh()
    const seen = await watch(path)
    await sbx.files.write(`${path}/a`, 'x')
    await seen.has('write a')
    await sbx.commands.run(`chmod 600 ${path}/a`)
    await seen.has('chmod a')
    await sbx.files.rename(`${path}/a`, `${path}/b`)
    await seen.has('create b')
    await sbx.files.remove(`${path}/b`)
    await seen.has('remove b')
    const order = ['create a', 'write a', 'rename a', 'create b', 'remove b'].map(line => seen.lines.indexOf(line))
    assert.ok(order.every((at, i) => at >= 0 && (i === 0 || at > order[i - 1])), seen.lines.join(', '))
    assert.ok(seen.events.every(event => event.entry === undefined))
    await seen.handle.stop()
  })
  check('stop: no more events', async () => {
    const path = await fresh()
    const seen = await watch(path)
    await seen.handle.stop()
    await sbx.files.write(`${path}/late`, 'x')
    await sleep(200)
    assert.deepEqual(seen.lines, [])
  })
  check('not recursive', async () => {
    const path = await fresh()
    await sbx.files.makeDir(`${path}/sub`)
    const seen = await watch(path)
    await sbx.files.write(`${path}/sub/deep`, 'x')
    await sbx.files.write(`${path}/top`, 'x')
    await seen.has('create top')
    assert.ok(!seen.lines.some(line => line.includes('deep')), seen.lines.join(', '))
    await seen.handle.stop()
  })
  check('recursive, with directories that come and go', async () => {
    const path = await fresh()
    await sbx.files.makeDir(`${path}/old`)
    const seen = await watch(path, { recursive: true })
    await sbx.files.write(`${path}/old/a`, 'x')
    await seen.has('write old/a')
    await sbx.files.makeDir(`${path}/new`)
    await seen.has('create new')
    await until('a new directory is watched', async () => {
      await sbx.files.write(`${path}/new/b`, 'x')
      return seen.lines.includes('write new/b')
    })
    await sbx.files.rename(`${path}/new`, `${path}/renamed`)
    await seen.has('create renamed')
    await sbx.files.write(`${path}/renamed/c`, 'x')
    await seen.has('create renamed/c')
    await sbx.files.remove(`${path}/renamed`)
    await seen.has('remove renamed')
    await seen.handle.stop()
  })
  check('entry', async () => {
    const path = await fresh()
    const seen = await watch(path, { includeEntry: true })
    await sbx.files.write(`${path}/a`, 'hello')
    await seen.has('write a')
    const { entry } = seen.events.find(event => event.type === 'write')
    assert.deepEqual([entry.name, entry.path, entry.type, entry.size], ['a', `${path}/a`, FileType.FILE, 5])
    await sbx.files.remove(`${path}/a`)
    await seen.has('remove a')
    assert.equal(seen.events.find(event => event.type === 'remove').entry, undefined)
    await seen.handle.stop()
  })
  check('the directory itself is removed', async () => {
    const path = await fresh()
    const seen = await watch(path)
    await sbx.files.remove(path)
    await seen.has('remove .')
    await seen.handle.stop()
  })
  check('two watches of one directory', async () => {
    const path = await fresh()
    const [one, two] = [await watch(path), await watch(path)]
    await one.handle.stop()
    await sbx.files.write(`${path}/a`, 'x')
    await two.has('write a')
    assert.deepEqual(one.lines, [])
    await two.handle.stop()
  })
  check('time limit', async () => {
    const seen = await watch(await fresh(), { timeoutMs: 300 })
    await until('the end', () => seen.exits.length)
    assert.ok(seen.exits[0] instanceof TimeoutError, String(seen.exits[0]))
  })
  check('missing', () => rejects(sbx.files.watchDir(`${dir}/missing`, () => {}), FileNotFoundError))
  check('a file', async () => {
    await sbx.files.write(`${dir}/plain`, 'x')
    await rejects(sbx.files.watchDir(`${dir}/plain`, () => {}), InvalidArgumentError)
  })
})

// ---- metadata of files --------------------------------------------------------------------------

group('metadata', {}, () => {
  const path = `${dir}/with-metadata`
  const metadata = { author: 'ann', k: 'a b=c;d ~' }
  check('write, getInfo, list, rename', async () => {
    assert.deepEqual((await sbx.files.write(path, 'x', { metadata })).metadata, metadata)
    assert.deepEqual((await sbx.files.getInfo(path)).metadata, metadata)
    const found = (await sbx.files.list(dir)).find(one => one.path === path)
    assert.deepEqual(found.metadata, metadata)
    assert.deepEqual((await sbx.files.rename(path, `${path}2`)).metadata, metadata)
  })
  check('a new write replaces it', async () => {
    await sbx.files.write(path, 'x', { metadata })
    assert.deepEqual((await sbx.files.write(path, 'y', { metadata: { n: '1' } })).metadata, { n: '1' })
    await sbx.files.write(path, 'z')
    assert.equal((await sbx.files.getInfo(path)).metadata, undefined)
  })
  check('in an event', async () => {
    const events = []
    const handle = await sbx.files.watchDir(dir, event => { events.push(event) }, { includeEntry: true, timeoutMs: 60_000 })
    await sbx.files.write(`${dir}/seen`, 'x', { metadata })
    await until('the metadata', () => events.some(event => event.name === 'seen' && event.entry?.metadata?.author === 'ann'))
    await handle.stop()
  })
})

// ---- URLs for plain HTTP clients ----------------------------------------------------------------

group('urls', {}, () => {
  // The URL names no sandbox where all of them share one; the routing headers do.
  const headers = envdUrl ? {} : { 'E2b-Sandbox-Id': '', 'E2b-Sandbox-Port': '49983' }
  const plain = (url, options = {}) => {
    if (!envdUrl) headers['E2b-Sandbox-Id'] = sbx.sandboxId
    return fetch(url, { ...options, headers: { ...headers, ...options.headers } })
  }
  const secure = () => { if (envdUrl && !env.CONFORMANCE_ENVD_TOKEN) skip('needs an access token') }
  const form = (text, name = 'f') => { const body = new FormData(); body.append('file', new Blob([text]), name); return body }
  const path = `${dir}/by url +&%41 é`

  check('upload and download', async () => {
    const posted = await plain(await sbx.uploadUrl(path), { method: 'POST', body: form('by form') })
    assert.equal(posted.status, 200)
    assert.equal((await posted.json())[0].path, path)
    assert.equal(await (await plain(await sbx.downloadUrl(path))).text(), 'by form')
    const raw = { method: 'POST', body: 'as it is', headers: { 'Content-Type': 'application/octet-stream' } }
    assert.equal((await plain(await sbx.uploadUrl(path), raw)).status, 200)
    assert.equal(await sbx.files.read(path), 'as it is')
  })
  check('upload without a path', async () => {
    const response = await plain(await sbx.uploadUrl(), { method: 'POST', body: form('x', `${dir}/named`) })
    assert.equal(response.status, 200)
    assert.equal(await sbx.files.read(`${dir}/named`), 'x')
  })
  check('a range', async () => {
    await sbx.files.write(path, '0123456789')
    const response = await plain(await sbx.downloadUrl(path), { headers: { Range: 'bytes=2-4' } })
    assert.deepEqual([response.status, response.headers.get('content-range'), await response.text()], [206, 'bytes 2-4/10', '234'])
    assert.equal((await plain(await sbx.downloadUrl(path), { headers: { Range: 'bytes=10-' } })).status, 416)
  })
  check('with a user and a time limit', async () => {
    secure()
    const url = await sbx.downloadUrl(path, { useSignatureExpiration: 60, user: 'root' })
    assert.equal((await plain(url)).status, 200)
  })
  check('expired', async () => {
    secure()
    const url = await sbx.downloadUrl(path, { useSignatureExpiration: -5 })
    const response = await plain(url)
    assert.equal(response.status, 401)
    assert.match((await response.json()).message, /expired/)
  })
  check('tampered', async () => {
    secure()
    const url = new URL(await sbx.downloadUrl(path, { useSignatureExpiration: 60 }))
    url.searchParams.set('path', `${dir}/other`)
    assert.equal((await plain(url)).status, 401)
    assert.equal((await plain(await sbx.uploadUrl(path), { method: 'GET' })).status, 401)
    url.searchParams.delete('signature')
    assert.equal((await plain(url)).status, 401)
  })
})

// ---- main ---------------------------------------------------------------------------------------

function usage(message) {
  console.error(`conformance: ${message}; see the head of conformance.mjs`)
  process.exit(2)
}

async function main() {
  if (!envdUrl) for (const name of ['E2B_API_URL', 'E2B_SANDBOX_URL', 'E2B_API_KEY']) if (!env[name]) usage(`${name} is not set`)
  const wanted = (env.CONFORMANCE_GROUPS || '').split(',').map(name => name.trim()).filter(Boolean)
  for (const name of wanted) if (!groups.some(one => one.name === name)) usage(`no group "${name}", there are ${groups.map(one => one.name).join(', ')}`)
  for (const one of groups) { defining = one; one.define() }
  const checks = groups.filter(one => !wanted.length || wanted.includes(one.name)).flatMap(one => one.checks)
    .filter(one => one.name.includes(env.CONFORMANCE_FILTER || ''))
  if (!checks.length) usage('no check matches')

  let openError
  await within(open(), checkTimeoutMs, 'opening the sandbox').catch(error => { openError = error })
  const total = { passed: 0, failed: 0, skipped: 0 }
  process.on('unhandledRejection', error => { total.failed++; console.log(`not ok - unhandled rejection: ${reason(error)}`) })
  for (const { name, control, fn, timeoutMs = checkTimeoutMs } of checks) {
    try {
      if (control && envdUrl) skip('needs a control plane')
      if (openError) throw new Error(`no sandbox: ${openError.message}`)
      await within(Promise.resolve().then(fn), timeoutMs, 'the check')
      total.passed++
      console.log(`ok - ${name}`)
    } catch (error) {
      if (error instanceof Skip) { total.skipped++; console.log(`skip - ${name}: ${error.message}`) }
      else { total.failed++; console.log(`not ok - ${name}: ${reason(error)}`) }
    }
  }
  await within(close(), 30_000, 'cleaning up').catch(error => { total.failed++; console.log(`not ok - clean-up: ${reason(error)}`) })
  console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`)
  process.exit(total.failed ? 1 : 0)
}

for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => within(close(), 10_000, 'cleaning up').catch(() => {}).finally(() => process.exit(130)))
main()
