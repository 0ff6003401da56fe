/** A YAML language server as an editor starts it: JSON-RPC over stdio, one document at a time. */
import { spawn } from "node:child_process"
import { createRequire } from "node:module"
import { pathToFileURL } from "node:url"
import { Schema } from "effect"

const Message = Schema.Struct({
  id: Schema.optionalKey(Schema.Union([Schema.Int, Schema.String])),
  method: Schema.optionalKey(Schema.String),
  params: Schema.optionalKey(Schema.Json),
  result: Schema.optionalKey(Schema.Json),
  error: Schema.optionalKey(Schema.Json)
})
const decodeMessage = Schema.decodeUnknownSync(Schema.fromJsonString(Message))

const Position = Schema.Struct({ line: Schema.Int, character: Schema.Int })
const Published = Schema.Struct({
  uri: Schema.String,
  diagnostics: Schema.Array(
    Schema.Struct({ message: Schema.String, range: Schema.Struct({ start: Position, end: Position }) })
  )
})
const Completions = Schema.Struct({
  items: Schema.Array(
    Schema.Struct({ label: Schema.String, documentation: Schema.optionalKey(Schema.Json), insertText: Schema.String })
  )
})
const Hover = Schema.NullOr(Schema.Struct({ contents: Schema.Json }))

/** The settings that an editor would send; no catalogue of schemas from the web. */
const settings = {
  yaml: { schemaStore: { enable: false }, validate: true, completion: true, hover: true },
  http: {},
  "[yaml]": {},
  editor: {},
  files: {}
} as const

export interface Place {
  /** 0-based, as the protocol counts. */
  readonly line: number
  readonly character: number
}

export interface LanguageServer {
  /** Opens the text as the file at `path`; resolves with what the server finds wrong with it: "line: message", lines from 1. */
  readonly open: (path: string, text: string) => Promise<ReadonlyArray<string>>
  /** Labels and documentation of what is offered at the place. */
  readonly complete: (path: string, at: Place) => Promise<ReadonlyMap<string, string>>
  readonly hover: (path: string, at: Place) => Promise<string>
  readonly stop: () => Promise<void>
}

export const startLanguageServer = async (): Promise<LanguageServer> => {
  const program = createRequire(import.meta.url).resolve("yaml-language-server/bin/yaml-language-server")
  const child = spawn(process.execPath, [program, "--stdio"], { stdio: ["pipe", "pipe", "inherit"] })
  const exited = new Promise<void>((resolve) => child.on("exit", () => resolve()))
  const waiting = new Map<number, (result: Schema.Json) => void>()
  const published = new Map<string, (diagnostics: typeof Published.Type) => void>()
  let next = 0

  const send = (message: Readonly<Record<string, unknown>>): void => {
    const text = JSON.stringify({ jsonrpc: "2.0", ...message })
    child.stdin.write(`Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`)
  }
  const request = (method: string, params: unknown): Promise<Schema.Json> =>
    new Promise((resolve) => {
      const id = ++next
      waiting.set(id, resolve)
      send({ id, method, params })
    })
  const receive = ({ error, id, method, params, result }: typeof Message.Type): void => {
    if (method === undefined && typeof id === "number") {
      if (error !== undefined) throw new Error(JSON.stringify(error))
      waiting.get(id)?.(result ?? null)
      waiting.delete(id)
    } else if (method === "textDocument/publishDiagnostics") {
      const found = Schema.decodeUnknownSync(Published)(params)
      published.get(found.uri)?.(found)
    } else if (id !== undefined) {
      // The server asks for its settings, one section an item; all else it asks is granted.
      const asked = Schema.decodeUnknownOption(
        Schema.Struct({ items: Schema.Array(Schema.Struct({ section: Schema.String })) })
      )(params)
      const answer =
        method === "workspace/configuration" && asked._tag === "Some"
          ? asked.value.items.map(({ section }) => settings[section as keyof typeof settings] ?? {})
          : null
      send({ id, result: answer })
    }
  }

  let buffer = Buffer.alloc(0)
  child.stdout.on("data", (chunk: Buffer) => {
    buffer = Buffer.concat([buffer, chunk])
    for (;;) {
      const head = buffer.indexOf("\r\n\r\n")
      const length = Number(/Content-Length: (\d+)/u.exec(buffer.subarray(0, Math.max(0, head)).toString())?.[1])
      if (head < 0 || buffer.length < head + 4 + length) return
      const text = buffer.subarray(head + 4, head + 4 + length).toString()
      buffer = buffer.subarray(head + 4 + length)
      receive(decodeMessage(text))
    }
  })

  await request("initialize", {
    processId: process.pid,
    rootUri: null,
    capabilities: {
      workspace: { configuration: true },
      textDocument: {
        completion: { completionItem: { snippetSupport: true, documentationFormat: ["markdown", "plaintext"] } },
        hover: { contentFormat: ["markdown", "plaintext"] }
      }
    }
  })
  send({ method: "initialized", params: {} })
  send({ method: "workspace/didChangeConfiguration", params: { settings } })

  const uriOf = (path: string): string => pathToFileURL(path).href
  const versions = new Map<string, number>()
  return {
    open: (path, text) =>
      new Promise((resolve) => {
        const uri = uriOf(path)
        published.set(uri, ({ diagnostics }) =>
          resolve(diagnostics.map(({ message, range }) => `${range.start.line + 1}: ${message}`))
        )
        const version = (versions.get(uri) ?? 0) + 1
        versions.set(uri, version)
        if (version === 1)
          send({ method: "textDocument/didOpen", params: { textDocument: { uri, languageId: "yaml", version, text } } })
        else
          send({
            method: "textDocument/didChange",
            params: { textDocument: { uri, version }, contentChanges: [{ text }] }
          })
      }),
    complete: async (path, at) => {
      const result = await request("textDocument/completion", { textDocument: { uri: uriOf(path) }, position: at })
      const { items } = Schema.decodeUnknownSync(Completions)(result)
      return new Map(items.map(({ documentation, label }) => [label, JSON.stringify(documentation ?? "")]))
    },
    hover: async (path, at) => {
      const result = await request("textDocument/hover", { textDocument: { uri: uriOf(path) }, position: at })
      return JSON.stringify(Schema.decodeUnknownSync(Hover)(result)?.contents ?? "")
    },
    stop: async () => {
      await request("shutdown", null)
      send({ method: "exit" })
      await exited
    }
  }
}
