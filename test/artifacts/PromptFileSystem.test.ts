/** The file system with its quick calls made in place says and does what Node's says and does, errors included. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Layer } from "effect"
import { sync } from "../../src/artifacts/DurableFile.ts"
import * as PromptFileSystem from "../../src/artifacts/PromptFileSystem.ts"

type Operation = (fs: FileSystem.FileSystem, path: (name: string) => string) => Effect.Effect<unknown, unknown>

/** In order, each on what those before left. Times and inodes differ by nature and are left out. */
const operations: Readonly<Record<string, Operation>> = {
  "write a file": (fs, path) => fs.writeFileString(path("a"), "text"),
  "write it again, exclusively": (fs, path) => fs.writeFileString(path("a"), "other", { flag: "wx" }),
  "append to it": (fs, path) => fs.writeFileString(path("a"), " more", { flag: "a" }),
  "write into no folder": (fs, path) => fs.writeFileString(path("no/a"), "text"),
  "read it": (fs, path) => fs.readFileString(path("a")),
  "read what is not there": (fs, path) => fs.readFileString(path("no")),
  "read a folder as a file": (fs, path) => fs.readFileString(path(".")),
  "stat it": (fs, path) => Effect.map(fs.stat(path("a")), ({ size, type }) => [type, Number(size)]),
  "stat a folder": (fs, path) => Effect.map(fs.stat(path(".")), ({ type }) => type),
  "stat what is not there": (fs, path) => fs.stat(path("no")),
  "does it exist": (fs, path) => Effect.all([fs.exists(path("a")), fs.exists(path("no"))]),
  "make a folder": (fs, path) => fs.makeDirectory(path("b")),
  "make it again": (fs, path) => fs.makeDirectory(path("b")),
  "make it again, recursively": (fs, path) => Effect.asVoid(fs.makeDirectory(path("b/c/d"), { recursive: true })),
  "make one in no folder": (fs, path) => fs.makeDirectory(path("no/c")),
  list: (fs, path) => Effect.map(fs.readDirectory(path(".")), (names) => names.toSorted()),
  "list recursively": (fs, path) =>
    Effect.map(fs.readDirectory(path("."), { recursive: true }), (names) => names.toSorted()),
  "list what is not there": (fs, path) => fs.readDirectory(path("no")),
  "list a file": (fs, path) => fs.readDirectory(path("a")),
  link: (fs, path) => fs.link(path("a"), path("hard")),
  "link onto what is there": (fs, path) => fs.link(path("a"), path("hard")),
  symlink: (fs, path) => fs.symlink("a", path("soft")),
  "symlink again": (fs, path) => fs.symlink("a", path("soft")),
  "read the link": (fs, path) => fs.readLink(path("soft")),
  "read what is no link": (fs, path) => fs.readLink(path("a")),
  rename: (fs, path) => fs.rename(path("hard"), path("moved")),
  "rename what is not there": (fs, path) => fs.rename(path("no"), path("moved")),
  "rename a folder onto a full one": (fs, path) => fs.rename(path("b/c"), path(".")),
  "set times": (fs, path) => fs.utimes(path("a"), 1000, 2000),
  "the time is set": (fs, path) => Effect.map(fs.stat(path("a")), ({ mtime }) => mtime),
  "remove a file": (fs, path) => fs.remove(path("moved")),
  "remove what is not there": (fs, path) => fs.remove(path("no")),
  "remove what is not there, by force": (fs, path) => fs.remove(path("no"), { force: true }),
  "remove a link, not what it leads to": (fs, path) => fs.remove(path("soft")),
  "remove a folder": (fs, path) => fs.remove(path("b")),
  "remove it recursively": (fs, path) => fs.remove(path("b"), { recursive: true }),
  "a large file": (fs, path) =>
    Effect.andThen(
      fs.writeFile(path("large"), new Uint8Array(2 ** 20 + 1).fill(7)),
      Effect.map(fs.readFile(path("large")), (content) => content.length)
    ),
  "what is left": (fs, path) => Effect.map(fs.readDirectory(path(".")), (names) => names.toSorted())
}

const transcript = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "tinyllama-prompt-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true }))
  )
  const said: Record<string, unknown> = {}
  for (const [name, operation] of Object.entries(operations)) {
    const result = yield* Effect.result(operation(fs, (inner) => join(folder, inner)))
    said[name] = result._tag === "Success" ? result.success : errorOf(result.failure)
  }
  yield* sync(join(folder, "a"))
  yield* sync(folder)
  said["sync of what is not there"] = errorOf(yield* Effect.flip(sync(join(folder, "no"))))
  said["content"] = readFileSync(join(folder, "a"), "utf8")
  return said
}).pipe(Effect.scoped)

const errorOf = (error: unknown): unknown =>
  typeof error === "object" && error !== null && "reason" in error
    ? (error.reason as { readonly _tag: string })._tag
    : error

describe("quick calls in place", () => {
  it.live("do what Node's file system does", () =>
    Effect.gen(function* () {
      const node = yield* transcript.pipe(Effect.provide(NodeServices.layer))
      const prompt = yield* transcript.pipe(
        Effect.provide(PromptFileSystem.layer.pipe(Layer.provideMerge(NodeServices.layer)))
      )
      assert.deepStrictEqual(prompt, node)
    })
  )
})
