const api = '/arcmanager/api/v1'
const { sessions: [session] } = await (await fetch(`${api}/auth/session`)).json()
if (session) {
  const logout = document.createElement('button')
  logout.textContent = `Log out ${session.user.name}`
  logout.onclick = async () => { await fetch(`${api}/auth/logout`, { method: 'POST' }); location.reload() }
  document.querySelector('#who').replaceChildren(logout)
  const answer = await fetch(`${api}/datahubs/${session.datahub}/api/v4/projects`)
  for (const { name } of await answer.json()) {
    const item = document.createElement('li')
    item.textContent = name
    document.querySelector('#projects').append(item)
  }
}
