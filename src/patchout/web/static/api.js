// Requests to the server. All addresses are relative: the secret token is part of the page's own address.

export class Refused extends Error {
  constructor(text, status) { super(text); this.status = status }
}

async function answer(promise) {
  let response
  try {
    response = await promise
  } catch {
    throw new Refused('the server does not answer: is `patchout web` still running?', 0)
  }
  const type = response.headers.get('content-type') || ''
  const body = type.startsWith('application/json') ? await response.json() : { error: await response.text() }
  if (!response.ok) throw new Refused(body.error, response.status)
  return body
}

export const address = (name, query = {}) => `api/${name}?${new URLSearchParams(query)}`
export const get = (name, query) => answer(fetch(address(name, query)))
export const post = (name, body) => answer(fetch(`api/${name}`, {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
}))
