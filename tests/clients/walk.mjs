// gitbeaker, unmodified: what an app does, told as JSON. On standard input: the address, the headers, a name.
import { text } from 'node:stream/consumers'
import { Gitlab } from '@gitbeaker/rest'

const { url, headers, name } = JSON.parse(await text(process.stdin))
// What a browser adds to each request by itself.
const plain = globalThis.fetch
globalThis.fetch = (resource, options) => {
  const request = new Request(resource, options)
  for (const [field, value] of Object.entries(headers)) request.headers.set(field, value)
  return plain(request)
}

const client = new Gitlab({ host: url, oauthToken: 'replaced by the gateway' })
const seen = {}
const offset = await client.Projects.all({ perPage: 7, orderBy: 'id', sort: 'asc' })
seen.offset = offset.map((project) => project.path_with_namespace)
const keyset = await client.Projects.all({ pagination: 'keyset', orderBy: 'id', sort: 'asc', perPage: 7 })
seen.keyset = keyset.map((project) => project.id)
const page = await client.Projects.all({ page: 2, perPage: 5, maxPages: 1, showExpanded: true, pagination: 'offset' })
seen.page = page.paginationInfo

const id = 'lu98be/testarc'
const project = await client.Projects.show(id)
seen.project = [project.id, project.web_url, project.default_branch]
seen.tree = (await client.Repositories.allRepositoryTrees(id, { recursive: true, perPage: 3 })).map((entry) => entry.path)
const readme = await client.RepositoryFiles.show(id, 'README.md', 'main')
seen.readme = [Buffer.from(readme.content, 'base64').toString(), readme.size]
seen.missing = await client.RepositoryFiles.show(id, 'no/such file.md', 'main').catch((error) => error.cause.response.status)

const path = `runs/${name} ä+b.md`
await client.RepositoryFiles.create(id, path, 'main', 'one', 'Create')
await client.RepositoryFiles.edit(id, path, 'main', 'two', 'Update')
seen.updated = await client.RepositoryFiles.showRaw(id, path, 'main')
const moved = [{ action: 'move', filePath: `runs/${name}.md`, previousPath: path, content: 'three' }]
const commit = await client.Commits.create(id, 'main', 'Move it', moved)
seen.committed = [commit.title, await client.RepositoryFiles.showRaw(id, `runs/${name}.md`, 'main')]
await client.RepositoryFiles.remove(id, `runs/${name}.md`, 'main', 'Delete')

const blob = new Blob([new Uint8Array(12800).map((_, at) => at)])
seen.uploaded = (await client.ProjectMarkdownUploads.create(id, { content: blob, filename: 'naive.pdf' })).alt
seen.trace = await client.Jobs.showLog(id, 9)
console.log(JSON.stringify(seen))
