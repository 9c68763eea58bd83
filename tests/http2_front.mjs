// Node's http2 server in front of an HTTP/1.1 one: node http2_front.mjs PORT BACKEND_PORT KEY CERT
import fs from 'node:fs'
import http from 'node:http'
import http2 from 'node:http2'

const [port, backend, key, cert] = process.argv.slice(2)
const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity })
const hopByHop = new Set(['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'upgrade'])

const server = http2.createSecureServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) })
server.on('stream', (stream, headers) => {
  const forward = {}
  for (const [name, value] of Object.entries(headers)) if (!name.startsWith(':')) forward[name] = value
  forward.host = headers[':authority']
  const request = http.request(
    { host: '127.0.0.1', port: backend, agent, method: headers[':method'], path: headers[':path'], headers: forward },
    (answer) => {
      if (stream.closed || stream.destroyed) return answer.destroy()
      const back = { ':status': answer.statusCode }
      for (const [name, value] of Object.entries(answer.headers)) if (!hopByHop.has(name)) back[name] = value
      stream.respond(back)
      answer.pipe(stream)
      answer.on('error', () => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR))
      answer.on('aborted', () => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR))
    }
  )
  request.on('error', () => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR))
  stream.on('error', () => request.destroy())
  stream.on('close', () => request.destroy())
  stream.pipe(request)
})
server.on('sessionError', () => {})
server.listen(port, '127.0.0.1')
