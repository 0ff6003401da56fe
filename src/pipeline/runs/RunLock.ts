/**
 * One writer at a time, without trusting that processes end well. A contender writes a claim file of its own, `<prefix>.<token>.lock`, under a
 * name that no other uses, then looks at the claims of others: of two contenders at least the later one sees the other and withdraws. So there
 * is no moment at which a dead holder's file has to be swapped for ours, and dead claims can be removed by anyone at any time. While its owner still
 * looks, the file is called `<prefix>.<token>.claim.lock`. A holder is dead
 * when its process is gone (or the pid now belongs to a process with another start time); one on another machine, or in another container,
 * when its heartbeat stopped.
 */
import { hostname } from "node:os"
import { randomBytes } from "node:crypto"
import { Clock, Effect, FileSystem, Option, Path, type PlatformError, Random, Runtime, Schedule, Schema } from "effect"
import { replaceFile } from "../../artifacts/DurableFile.ts"
import { identify, machineId, ownIdentity, ProcessId, processRuns } from "../../artifacts/ProcessIdentity.ts"
import { timestamp } from "./Journal.ts"

const heartbeatMillis = 2000
/** A holder elsewhere that gave no sign for this long is dead. */
const silenceMillis = 30_000

export const Claim = Schema.Struct({
  version: Schema.Literal(1),
  token: Schema.String,
  ...ProcessId.fields,
  host: Schema.String,
  /** Equal for processes that can see each other's pids: boot id and pid namespace. */
  machine: Schema.String,
  /** ISO 8601. */
  since: Schema.String,
  /** A worker that writes on the holder's behalf; whoever takes over ends it first. */
  worker: Schema.optionalKey(ProcessId),
  /** More of them, where several work together. */
  ranks: Schema.optionalKey(Schema.Array(ProcessId))
})
export type Claim = typeof Claim.Type

/** How the file of a claim that has not won yet ends. */
const claiming = ".claim.lock"

const decodeClaim = Schema.decodeEffect(Schema.fromJsonString(Claim))

/** Another process writes here. Exit code 5. */
export class LockHeld extends Schema.TaggedError<LockHeld>()("LockHeld", {
  what: Schema.String,
  pid: Schema.Int,
  host: Schema.String,
  since: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 5
  override get message(): string {
    return (
      `${this.what} is being written by process ${this.pid} on ${this.host} since ${this.since}. ` +
      "Next: wait for it (tinyllama status shows how far it is), or stop it (tinyllama stop); what is complete is kept."
    )
  }
}

export interface Lock {
  /** Dead holders whose claims were removed. */
  readonly takenOver: ReadonlyArray<Claim>
  /** Names the processes that write on our behalf. */
  readonly setWorkers: (pids: ReadonlyArray<number>) => Effect.Effect<void>
}

/** Takes the lock until the scope closes, or fails at once with the live holder. */
export const acquireLock = Effect.fnUntraced(function* (prefix: string, what: string) {
  const fs = yield* FileSystem.FileSystem
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const token = randomBytes(8).toString("hex")
  const [claimed, won] = [`${prefix}.${token}${claiming}`, `${prefix}.${token}.lock`]
  let file = claimed
  const claim = yield* newClaim(token)
  const save = (next: Claim) => replaceFile(file, `${JSON.stringify(next)}\n`)
  const withdraw = Effect.suspend(() => Effect.ignore(fs.remove(file, { force: true })))

  yield* Effect.acquireRelease(save(claim), () => withdraw)
  const takenOver = yield* contend(prefix, what, token, withdraw, save(claim)).pipe(Effect.onError(() => withdraw))
  yield* Effect.uninterruptible(
    Effect.map(fs.rename(claimed, won), () => {
      file = won
    })
  )
  yield* heart(won)
  const lock: Lock = {
    takenOver,
    setWorkers: ([first, ...others]) => {
      const worker = first === undefined ? {} : { worker: identify(first) }
      const ranks = others.length === 0 ? {} : { ranks: others.map(identify) }
      return Effect.ignore(Effect.provideContext(save({ ...claim, ...worker, ...ranks }), services))
    }
  }
  return lock
})

const newClaim = (token: string): Effect.Effect<Claim> =>
  Effect.map(timestamp, (since) => ({
    version: 1,
    token,
    ...ownIdentity(),
    host: hostname(),
    machine: machineId(),
    since
  }))

/**
 * A claim that many may hold at once, until the scope closes: whoever wants the place alone takes a lock elsewhere first and then looks for
 * these by `liveClaims`.
 */
export const shareLock = Effect.fn("shareLock")(function* (prefix: string) {
  const fs = yield* FileSystem.FileSystem
  const token = randomBytes(8).toString("hex")
  const file = `${prefix}.${token}.lock`
  const claim = yield* newClaim(token)
  yield* Effect.acquireRelease(replaceFile(file, `${JSON.stringify(claim)}\n`), () =>
    Effect.ignore(fs.remove(file, { force: true }))
  )
  yield* heart(file)
})

/** The claims of living processes; those of dead ones are removed, and their workers ended. */
export const liveClaims = Effect.fn("liveClaims")(function* (prefix: string) {
  const { live } = yield* sortClaims(prefix, "")
  return live.map(({ claim }) => claim)
})

/** The live claims but the one with `token`; removes dead ones on the way and returns those of them that had won. */
const sortClaims = Effect.fnUntraced(function* (prefix: string, token: string) {
  const fs = yield* FileSystem.FileSystem
  const live: Array<FoundClaim> = []
  const dead: Array<Claim> = []
  for (const found of yield* readClaims(prefix, token)) {
    if ((yield* isAlive(found)) || (yield* beatsStill(found))) live.push(found)
    else {
      yield* endWorkers(found.claim)
      yield* Effect.ignore(fs.remove(found.file, { force: true }))
      if (found.won) dead.push(found.claim)
    }
  }
  return { live, dead }
})

/** Returns once no other live claim is there; removes dead ones on the way and returns them. */
const contend = Effect.fnUntraced(function* (
  prefix: string,
  what: string,
  token: string,
  withdraw: Effect.Effect<void>,
  claimAgain: Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path>
) {
  const dead = new Map<string, Claim>()
  for (;;) {
    const others = yield* sortClaims(prefix, token)
    for (const claim of others.dead) dead.set(claim.token, claim)
    const { live } = others
    const holder = live.find(({ won }) => won)?.claim
    if (holder !== undefined) {
      return yield* new LockHeld({ what, pid: holder.pid, host: holder.host, since: holder.since })
    }
    if (live.length === 0) return Array.from(dead.values())
    // Another contender at the same moment: both withdraw and come back at different times.
    yield* withdraw
    yield* Effect.sleep(20 + 80 * (yield* Random.next))
    yield* claimAgain
  }
})

/** The live holder, if there is one. */
export const lockHolder = Effect.fn("lockHolder")(function* (prefix: string) {
  for (const found of yield* readClaims(prefix))
    if (found.won && (yield* isAlive(found))) return found.claim
  return undefined
})

/** Whether the claim's process is one that this process can see and signal. */
export const isLocal = (claim: Claim): boolean => claim.machine === machineId()

/** Takes away the claims of dead holders in a folder; whoever wants one of their locks would do the same. */
export const removeDeadClaims = Effect.fn("removeDeadClaims")(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  for (const found of yield* readClaimsIn(folder, () => true)) {
    if ((yield* isAlive(found)) || (yield* beatsStill(found))) continue
    yield* endWorkers(found.claim)
    yield* Effect.ignore(fs.remove(found.file, { force: true }))
  }
})

interface FoundClaim {
  readonly file: string
  readonly claim: Claim
  /** Its owner found no other, and holds the lock. */
  readonly won: boolean
  /** Milliseconds since the epoch. */
  readonly heartbeat: number
}

/** All claims but that of the token. */
const readClaims = Effect.fnUntraced(function* (prefix: string, token = "") {
  const path = yield* Path.Path
  const start = `${path.basename(prefix)}.`
  const own = `${start}${token}.`
  return yield* readClaimsIn(
    path.dirname(prefix),
    (name) => name.startsWith(start) && (token === "" || !name.startsWith(own))
  )
})

/** Looks again as long as a file vanishes between its listing and its reading: its owner may have won in between, and goes by another name now. */
const readClaimsIn = Effect.fnUntraced(function* (folder: string, wanted: (name: string) => boolean) {
  const fs = yield* FileSystem.FileSystem
  for (;;) {
    const names = yield* fs.readDirectory(folder).pipe(
      Effect.catchIf(
        (error) => error.reason._tag === "NotFound",
        () => Effect.succeed([])
      )
    )
    const found: Array<FoundClaim> = []
    let vanished = false
    for (const name of names.filter((name) => name.endsWith(".lock") && wanted(name))) {
      const read = yield* readClaim((yield* Path.Path).join(folder, name))
      if (read === undefined) vanished = true
      else if (read !== "damaged") found.push(read)
    }
    if (!vanished) return found
  }
})

const readClaim = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* readIfThere(fs.readFileString(file))
  const info = yield* readIfThere(fs.stat(file))
  if (text === undefined || info === undefined) return undefined
  const claim = yield* Effect.option(decodeClaim(text))
  if (Option.isSome(claim)) {
    const heartbeat = Option.getOrUndefined(info.mtime)?.getTime() ?? 0
    return { file, claim: claim.value, won: !file.endsWith(claiming), heartbeat } satisfies FoundClaim
  }
  // Claims get their names whole, and are not synced: one without its bytes went through a power cut, and its process with it.
  if (!isJson(text)) yield* Effect.ignore(fs.remove(file, { force: true }))
  return "damaged" as const
})

const decodeJson = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Unknown))
const isJson = (text: string): boolean => Option.isSome(decodeJson(text))

/** undefined when there is no such file; a disk that cannot be read must not look like a free lock. */
const readIfThere = <A, R>(reading: Effect.Effect<A, PlatformError.PlatformError, R>) =>
  Effect.catchIf(
    reading,
    (error) => error.reason._tag === "NotFound",
    () => Effect.undefined
  )

const isAlive = ({ claim, heartbeat }: FoundClaim): Effect.Effect<boolean> =>
  claim.machine === machineId()
    ? Effect.sync(() => processRuns(claim))
    : Effect.map(Clock.currentTimeMillis, (now) => Math.abs(now - heartbeat) < silenceMillis)

/**
 * Before a holder elsewhere is taken for dead: does its heart beat, whatever the time? Its clock or ours may be wrong by hours, and a heartbeat
 * that looks old, or lies in the future, may be of this moment.
 */
const beatsStill = Effect.fnUntraced(function* ({ claim, file, heartbeat }: FoundClaim) {
  if (claim.machine === machineId()) return false
  const fs = yield* FileSystem.FileSystem
  yield* Effect.sleep(2.5 * heartbeatMillis)
  const info = yield* readIfThere(fs.stat(file))
  return info !== undefined && Option.getOrUndefined(info.mtime)?.getTime() !== heartbeat
})

/** Ends the workers of a dead holder, so that they cannot write beside its successor's. */
const endWorkers = Effect.fnUntraced(function* ({ machine, ranks = [], worker }: Claim) {
  if (worker === undefined || machine !== machineId()) return
  const all = [worker, ...ranks]
  for (let living = all; ; living = living.filter(processRuns)) {
    for (const { pid } of living.filter(processRuns)) yield* Effect.sync(() => killQuietly(pid))
    if (!living.some(processRuns)) return
    yield* Effect.sleep(10)
  }
})

const killQuietly = (pid: number): void => {
  try {
    process.kill(pid, "SIGKILL")
  } catch {
    // It ended by itself in between, which is all we want.
  }
}

/** Beats until the scope closes. The claim's own time is the first beat. */
const heart = (file: string) =>
  beat(file).pipe(Effect.delay(heartbeatMillis), Effect.repeat(Schedule.forever), Effect.forkScoped)

const beat = (file: string): Effect.Effect<void, never, FileSystem.FileSystem> =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const now = new Date(yield* Clock.currentTimeMillis)
    yield* Effect.ignore(fs.utimes(file, now, now))
  })
