/**
 * download: brings text from this machine, the web or a hub into one Documents artifact. Files are copied: the user may edit the originals.
 * What the web sends is trusted once and then kept; give a sha256 to pin it.
 */
import { writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { countIn } from "../artifacts/Artifact.ts"
import { encodeList, listFile } from "../data/Documents.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { describe, plan, planLocal, type Planned, type PlanOptions } from "../data/DownloadPlan.ts"
import { sha256OfInput } from "../data/FileDigest.ts"
import { makeSession } from "../data/HttpTransport.ts"
import { defaultToken } from "../data/Hub.ts"
import { heldBytes } from "../data/RangeJournal.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { S3Settings } from "../data/S3.ts"
import { Source } from "../data/Sources.ts"
import { defineStage, parameter, Preempted, StageError, type StageContext } from "../pipeline/StageType.ts"
import { bring, checkRoom, nameOf, type Prepared } from "./DownloadFile.ts"
import { adoptDownloads, openEarlier } from "./DownloadReuse.ts"
import { expectedTokens, forecastDownload } from "./DownloadForecast.ts"
import { extentOf, namesIn, noteTotal, sizeOf } from "./WorkExtent.ts"

/** Bytes a second: of a usual line to a hub, 200 Mbit/s; of copying and hashing on a disk of today. */
const NETWORK_RATE = 25e6
const COPY_RATE = 300e6

/** Meters all files together; a reading per half percent is enough. */
const meter = (context: Pick<StageContext<unknown, unknown>, "progress">, planned: ReadonlyArray<Planned>) => {
  const totals = planned.map(({ bytes }) => bytes)
  const dones = planned.map(() => 0)
  let done = 0
  let total = totals.reduce((sum, bytes) => sum + bytes, 0)
  let shown = -1
  return (file: number, bytes: number, size: number | undefined): void => {
    total += Math.max(size ?? 0, bytes, totals[file] ?? 0) - (totals[file] ?? 0)
    totals[file] = Math.max(size ?? 0, bytes, totals[file] ?? 0)
    done += bytes - (dones[file] ?? 0)
    dones[file] = bytes
    if (done === total || done - shown >= total / 200) {
      context.progress({ done, total, unit: "bytes" })
      shown = done
    }
  }
}

/** What max_bytes left out of a source, for the facts. */
interface LeftOut {
  readonly source: number
  readonly files: number
  readonly bytes: number
}

type Context = StageContext<{ readonly sources: ReadonlyArray<Source> }, unknown>

const params = {
  sources: parameter(Schema.NonEmptyArray(Source), {
    change: "additive",
    describe:
      "where the text comes from: a list of {path: file or glob | url | hub: owner/name@revision with include | preset}, each with exclude, max_bytes, format, sha256"
  }),
  endpoint: parameter(Schema.NullOr(Schema.String), {
    change: "operational",
    describe: "address of the hub; by default HF_ENDPOINT from the environment, else the public hub",
    default: null
  }),
  token: parameter(Schema.String.check(Schema.isPattern(/^[A-Za-z_]\w*$/u, { message: "the name of a variable" })), {
    change: "operational",
    describe: "name of the secret that holds the hub's token",
    default: defaultToken
  }),
  s3: parameter(S3Settings, {
    change: "operational",
    describe:
      "how s3:// is reached: {endpoint, region, access_key, secret_key, session_token}, the last three names of secrets; by default AWS's us-east-1, unsigned",
    default: {}
  }),
  connections: parameter(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 64 })), {
    change: "operational",
    describe: "requests that run at once, over all files and the ranges of large ones",
    default: 8
  })
}

export const downloadStage = defineStage({
  name: "download",
  version: 1,
  describe: "Brings text files and jsonl from this machine, the web or a hub into one set of documents",
  params,
  inputs: {},
  outputs: { documents: { type: "Documents", describe: "the files, and where each came from" } },
  headline: ({ documents }) => `${countIn(documents, "files")} files, ${countIn(documents, "bytes")} bytes`,

  observationChange: "additive",
  observe: (params, baseDirectory) =>
    Effect.forEach(params.sources, (source, index) =>
      source.path === undefined
        ? Effect.succeed(null)
        : planLocal(source, index, baseDirectory).pipe(
            Effect.flatMap(({ taken }) =>
              Effect.forEach(
                taken,
                ({ bytes, from, source: path, place }) =>
                  Effect.map(sha256OfInput(from.address, place), (sha256) => ({ path, bytes, sha256 })),
                { concurrency: 8 }
              )
            )
          )
    ),

  resumePoint: Effect.fn("download.resumePoint")(function* (work) {
    const folder = join(work, "downloads")
    let bytes = 0
    for (const name of yield* namesIn(folder))
      if (name.endsWith(".part")) bytes += heldBytes(join(folder, name))
      else if (!/\.(?:json|journal)$/u.test(name)) bytes += yield* sizeOf(join(folder, name))
    return yield* extentOf(work, bytes)
  }),
  forecast: ({ sources }, _, previous, observed) =>
    forecastDownload(
      sources,
      observed,
      previous === undefined
        ? undefined
        : { sources: previous.params.sources, documents: previous.outputs["documents"] }
    ),
  modelSeconds: ({ amount }, { sources }) =>
    secondsOfBytes(amount, sources.some(({ path }) => path === undefined) ? NETWORK_RATE : COPY_RATE),

  run: Effect.fn("download")(function* (context) {
    const { connections, endpoint, s3, sources, token } = context.params
    const output = context.output("documents")
    const session = yield* makeSession({
      connections,
      stopRequested: () => context.stopRequested(),
      log: (line) => context.log(line)
    })
    const options = { session, baseDirectory: context.baseDirectory, endpoint, token, s3 }
    const { commits, leftOut, planned } = yield* planAll(context, options)
    const { previous, work } = context
    const findEarlier = yield* openEarlier(previous)
    if (previous?.work !== undefined) yield* adoptDownloads(previous.work, work)
    const prepared = yield* Effect.forEach(planned, (file) =>
      Effect.map(findEarlier(file, sources[file.index] ?? {}), (earlier): Prepared => ({
        file,
        earlier,
        kept: join(work, "downloads", nameOf(file))
      }))
    )
    yield* checkRoom(work, prepared)
    const remote = planned.filter(({ from }) => from.kind === "http")
    if (remote.length > 0 && remote.every(({ bytes }) => bytes > 0))
      yield* noteTotal(
        work,
        remote.reduce((sum, { bytes }) => sum + bytes, 0),
        "bytes"
      )

    const report = meter(context, planned)
    let done = 0
    const files = yield* Effect.forEach(
      prepared,
      (entry, number) =>
        Effect.gen(function* () {
          if (context.stopRequested())
            return yield* new Preempted({
              message: `stopped after ${done} of ${planned.length} files; downloads are kept`
            })
          const listed = yield* bring(session, entry, output, (bytes, size) => report(number, bytes, size))
          done++
          return listed
        }),
      { concurrency: connections }
    )

    const reused = prepared.filter(({ earlier }) => earlier !== undefined).length
    if (reused > 0) context.log(`${reused} of ${files.length} files are those of an earlier result`)
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
    if (bytes === 0)
      return yield* new StageError({
        failure: "invalid-input",
        message: `the corpus is empty: ${files.length} files with 0 bytes in all`,
        next: "name sources that hold text"
      })
    yield* Effect.tryPromise({
      try: () => writeFile(join(output, listFile), encodeList(files)),
      catch: fileFailure(listFile)
    })
    context.log(`${files.length} files, ${bytes} bytes`)
    const bytesOf = sources.map((_, index) =>
      files.reduce((sum, file, number) => sum + (planned[number]?.index === index ? file.bytes : 0), 0)
    )
    const facts = { files: files.length, bytes, left_out: leftOut.map((entry) => ({ ...entry })) }
    const expected = expectedTokens(sources, bytesOf)
    return {
      documents: {
        ...facts,
        ...(commits.length === 0 ? {} : { commits: commits.map((entry) => ({ ...entry })) }),
        ...(expected === undefined ? {} : { expected_tokens: expected })
      }
    }
  })
})

/** Lists every source; a file that two of them name is taken once. */
const planAll = Effect.fnUntraced(function* (context: Pick<Context, "params" | "log">, options: PlanOptions) {
  const { sources } = context.params
  const planned: Array<Planned> = []
  const leftOut: Array<LeftOut> = []
  const commits: Array<{ readonly source: number; readonly commit: string }> = []
  const known = new Set<string>()
  for (const [index, source] of sources.entries()) {
    const place = describe(source, index)
    const selected = yield* plan(source, index, options)
    const fresh = selected.taken.filter(({ from }) => !known.has(from.address))
    for (const { from } of fresh) known.add(from.address)
    planned.push(...fresh)
    if (selected.commit !== undefined) {
      commits.push({ source: index, commit: selected.commit })
      context.log(`${place}: ${selected.taken.length} files of commit ${selected.commit}`)
    }
    if (fresh.length < selected.taken.length)
      context.log(
        `${place}: ${selected.taken.length - fresh.length} files are named by an earlier source and taken once`
      )
    if (selected.leftOut.length > 0) {
      const bytes = selected.leftOut.reduce((sum, file) => sum + file.bytes, 0)
      leftOut.push({ source: index, files: selected.leftOut.length, bytes })
      context.log(
        `${place}: max_bytes ${source.max_bytes} takes ${selected.taken.length} files; left out ${selected.leftOut.length} files (${bytes} bytes), from ${selected.leftOut[0]?.source} on`
      )
    }
  }
  return { planned, leftOut, commits }
})
