import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { presets } from "../../src/data/Presets.ts"
import { hubSourceOf, resolveLocal, Source, withinBudget } from "../../src/data/Sources.ts"
import { temporaryFolder } from "../stages/stage-fixture.ts"

const tree = Effect.map(temporaryFolder, (folder) => {
  for (const [path, text] of Object.entries({
    "docs/b.md": "bb",
    "docs/a.md": "a",
    "docs/deep/c.md": "ccc",
    "docs/deep/CHANGELOG.md": "log",
    "docs/code.ts": "code",
    "rows.jsonl": '{"text":"x"}\n',
    "odd[1].md": "odd"
  })) {
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
  symlinkSync(join(folder, "nowhere"), join(folder, "docs/broken.md"))
  return folder
})

const ids = (source: Source, folder: string) =>
  Effect.map(resolveLocal(source, 0, folder), (files) => files.map(({ id }) => id))

const issuesOf = (input: unknown) =>
  Schema.decodeUnknownEffect(Source, { errors: "all", onExcessProperty: "error" })(input).pipe(
    Effect.flip,
    Effect.map(({ message }) => message)
  )

describe("Sources", () => {
  it.live("globs give files in a fixed order, without links that lead nowhere", () =>
    Effect.gen(function* () {
      const folder = yield* tree
      assert.deepStrictEqual(yield* ids({ path: "docs/**/*.md" }, folder), [
        "docs/a.md",
        "docs/b.md",
        "docs/deep/CHANGELOG.md",
        "docs/deep/c.md"
      ])
      assert.deepStrictEqual(yield* ids({ path: "./docs/**/*.md", exclude: ["**/CHANGELOG*", "docs/a.md"] }, folder), [
        "docs/b.md",
        "docs/deep/c.md"
      ])
    })
  )

  it.live("a list keeps its order and takes a file once", () =>
    Effect.gen(function* () {
      const folder = yield* tree
      assert.deepStrictEqual(yield* ids({ path: ["rows.jsonl", "docs/*.md", "docs/a.*"] }, folder), [
        "rows.jsonl",
        "docs/a.md",
        "docs/b.md"
      ])
    })
  )

  it.live("names are relative to the pipeline file, also above it; absolute globs to their fixed part", () =>
    Effect.gen(function* () {
      const folder = yield* tree
      assert.deepStrictEqual(yield* ids({ path: "../a.md" }, join(folder, "docs/deep")), ["../a.md"])
      assert.deepStrictEqual(yield* ids({ path: join(folder, "docs/*.ts") }, "/"), ["code.ts"])
      assert.deepStrictEqual(yield* ids({ path: join(folder, "docs/code.ts") }, "/"), ["code.ts"])
      assert.deepStrictEqual(yield* ids({ path: "odd[1].md" }, folder), ["odd[1].md"])
    })
  )

  it.live(
    "a missing file, an empty glob, a folder and an exclude that leaves nothing are invalid-input with their place",
    () =>
      Effect.gen(function* () {
        const folder = yield* tree
        for (const [source, message] of [
          [{ path: "nope.txt" }, "sources[0] (path: nope.txt): no such file"],
          [{ path: "docs/*.rs" }, "sources[0] (path: docs/*.rs): the glob matches no file"],
          [{ path: "docs" }, "sources[0] (path: docs): is a folder, not a file"],
          [{ path: ["rows.jsonl", "x/*"] }, "sources[0] (path: x/*): the glob matches no file"],
          [{ path: "docs/*.md", exclude: "docs/**" }, "sources[0] (path: docs/*.md): exclude leaves no file"]
        ] as const) {
          const error = yield* Effect.flip(ids(source, folder))
          assert.deepStrictEqual([error.failure, error.message], ["invalid-input", message])
        }
      })
  )

  it.effect("a source has one kind, and only fields of that kind", () =>
    Effect.gen(function* () {
      assert.include(yield* issuesOf({ format: "text" }), "exactly one of path, url, hub and preset")
      assert.include(yield* issuesOf({ path: "a", url: "https://example.org/a" }), "exactly one of path, url, hub")
      assert.include(yield* issuesOf({ url: "https://example.org/a", max_bytes: 5 }), "max_bytes has no meaning")
      assert.include(yield* issuesOf({ hub: "owner/name" }), "a hub source needs include")
      assert.include(yield* issuesOf({ hub: "owner", include: "*" }), "owner/name")
      assert.include(yield* issuesOf({ hub: "owner/name@v1", revision: "v2", include: "*" }), "behind the @")
      assert.include(yield* issuesOf({ url: "s3://bucket/folder/" }), "a prefix needs include")
      assert.include(yield* issuesOf({ url: "s3://bucket/a.txt", include: "*" }), "a url of one file")
      assert.include(yield* issuesOf({ preset: "slimpyjama" }), "slimpajama")
      assert.include(yield* issuesOf({ url: "ftp://example.org/a" }), "http")
      assert.include(yield* issuesOf({ path: "a", sha256: "12" }), "64 lower-case")
      assert.include(yield* issuesOf({ path: "a", pth: "b" }), "pth")
    })
  )

  it.effect("a hub source has its revision behind an @ or beside it, with or without hf: in front", () =>
    Effect.gen(function* () {
      const decoded = (input: unknown) => Effect.map(Schema.decodeUnknownEffect(Source)(input), hubSourceOf)
      const repository = { id: "owner/name", revision: "refs/pr/3", type: "dataset" as const }
      for (const hub of [
        { hub: "hf:owner/name@refs/pr/3" },
        { hub: "owner/name@refs/pr/3" },
        { hub: "owner/name", revision: "refs/pr/3" }
      ])
        assert.deepStrictEqual((yield* decoded({ ...hub, include: "*" }))?.repository, repository)
      assert.strictEqual((yield* decoded({ hub: "hf:owner/name", include: "*" }))?.repository.revision, "main")
    })
  )

  it.effect("a preset stands for repository, revision, files and format; what is named beside it wins", () =>
    Effect.gen(function* () {
      const decoded = (input: unknown) => Effect.map(Schema.decodeUnknownEffect(Source)(input), hubSourceOf)
      for (const { exclude, format, include, name, repository, revision } of presets) {
        const found = yield* decoded({ preset: name })
        assert.deepInclude(found, { include, exclude, format })
        assert.deepStrictEqual(found?.repository, { id: repository, revision, type: "dataset" })
        assert.strictEqual(found?.preset?.name, name)
      }
      const narrowed = yield* decoded({ preset: "slimpajama", include: "train/chunk1/*", revision: "v2" })
      assert.deepStrictEqual(
        [narrowed?.include, narrowed?.repository.revision, narrowed?.preset],
        [["train/chunk1/*"], "v2", undefined]
      )
    })
  )

  const Sizes = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 50 })))
  it.effect.prop(
    "a budget takes the longest prefix that fits",
    [Sizes, Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 500 }))],
    ([sizes, budget]) =>
      Effect.sync(() => {
        const files = sizes.map((bytes, id) => ({ bytes, id }))
        const { taken, leftOut } = withinBudget(files, budget)
        const total = taken.reduce((sum, { bytes }) => sum + bytes, 0)
        assert.deepStrictEqual([...taken, ...leftOut], files)
        assert.isTrue(total <= budget)
        if (leftOut[0] !== undefined) assert.isTrue(total + leftOut[0].bytes > budget)
      })
  )
})
