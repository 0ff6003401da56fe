/**
 * Slurm's commands as a service. Answers are asked for in the formats that every version has (--noheader with separators, not --json, whose form
 * changes with each release) and decoded by Schema. Many jobs that are watched at the same time are one question to the controller.
 */
import { execFile } from "node:child_process"
import { Clock, Context, Effect, Layer, Option, Schema } from "effect"
import { withoutRanks } from "../Ranks.ts"
import { JobState, stateName } from "./SlurmState.ts"

/**
 * absent: the command is not on this machine. refused: Slurm says no, and would again. unreachable: the controller does not answer; whether it heard
 * is not known.
 */
export class SlurmError extends Schema.TaggedError<SlurmError>()("SlurmError", {
  kind: Schema.Literals(["absent", "refused", "unreachable"]),
  command: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return this.kind === "absent"
      ? `${this.command}: not found in PATH, so this machine has no Slurm`
      : `${this.command}: ${this.detail}`
  }
  get next(): string {
    switch (this.kind) {
      case "absent":
        return "run on a login node of the cluster, or leave the executor out (executor: { kind: local })"
      case "refused":
        return "correct the executor's partition, account, qos, constraint, time or extra, or the stage's resources (sinfo shows what there is)"
      case "unreachable":
        return "wait until the controller answers (scontrol ping), then run again: a submitted job is found again"
    }
  }
}

export interface SlurmQueueShape {
  /** Submits a script file; the job's id. `environment` is what the job gets. */
  readonly submit: (
    script: string,
    options: { readonly name: string; readonly environment: NodeJS.ProcessEnv }
  ) => Effect.Effect<string, SlurmError>
  /** Whether a script would be taken: what Slurm says of its start. */
  readonly test: (script: string) => Effect.Effect<string, SlurmError>
  /** All jobs and tasks of this name, whether in the queue or, where there is accounting, past. */
  readonly find: (name: string) => Effect.Effect<ReadonlyArray<JobState>, SlurmError>
  /** The job with its exit code, as long as the controller remembers it. */
  readonly detail: (id: string) => Effect.Effect<JobState | undefined, SlurmError>
  readonly cancel: (id: string) => Effect.Effect<void, SlurmError>
  /** USR1 to the batch script, which has its ranks save. */
  readonly askToSave: (id: string) => Effect.Effect<void, SlurmError>
  readonly clusterName: Effect.Effect<string, SlurmError>
  /** What `srun --mpi=` takes here. */
  readonly mpiPlugins: Effect.Effect<ReadonlyArray<string>, SlurmError>
}

export class SlurmQueue extends Context.Service<SlurmQueue, SlurmQueueShape>()("tinyllama/pipeline/SlurmQueue") {
  static readonly layer = Layer.sync(SlurmQueue, () => makeQueue())
}

/** Milliseconds that a command may take, and after which a name that nobody asks for is not watched any more. */
const patience = 120_000
const forgotten = 120_000

interface Answer {
  readonly stdout: string
  readonly stderr: string
}

const ask = (
  command: string,
  options: ReadonlyArray<string>,
  environment: NodeJS.ProcessEnv = withoutRanks(process.env)
): Effect.Effect<Answer, SlurmError> =>
  Effect.callback<Answer, SlurmError>((resume) => {
    const child = execFile(
      command,
      options,
      { env: environment, timeout: patience, maxBuffer: 1 << 26 },
      (error, stdout, stderr) => {
        if (error === null) return resume(Effect.succeed({ stdout, stderr }))
        const detail = saidBy(stderr === "" ? error.message : stderr)
        const kind =
          error.code === "ENOENT" ? "absent" : unreachable.test(stderr) || error.killed ? "unreachable" : "refused"
        resume(Effect.fail(new SlurmError({ kind, command, detail })))
      }
    )
    return Effect.sync(() => child.kill())
  })

const unreachable =
  /Unable to contact slurm controller|Socket timed out|Connection refused|Communication connection failure|Zero Bytes were transmitted|connect failure|Transport endpoint|Munge encode failed|authentication error|fetch_config|configuration source|rejected by server|Slurm backup controller in standby|Resource temporarily unavailable|Slurm temporarily unable/iu

/** Without the programs' names and levels: "sbatch: error: Batch job submission failed: Invalid account". */
const saidBy = (text: string): string =>
  Array.from(
    new Set(text.split("\n").flatMap((line) => line.replace(/^\s*\w+: (?:error: |fatal: )?/u, "").trim() || []))
  ).join("; ")

export const makeQueue = (): SlurmQueueShape => {
  /** Names that someone watches, with when they were last asked for. */
  const watched = new Map<string, number>()
  let listing: Effect.Effect<ReadonlyArray<JobState & { readonly name: string }>, SlurmError> | undefined

  /** One squeue for all watched names, its answer good for a moment. */
  const look = (name: string) =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      if (!watched.has(name)) listing = undefined
      watched.set(name, now)
      for (const [other, at] of watched) if (now - at > forgotten) watched.delete(other)
      listing ??= yield* Effect.cachedWithTTL(
        squeue(() => Array.from(watched.keys())),
        "400 millis"
      )
      return yield* listing
    })

  const find = (name: string) =>
    Effect.gen(function* () {
      const queued = (yield* look(name)).filter((job) => job.name === name)
      return queued.length > 0 ? queued : yield* past(name)
    })

  return {
    submit: (script, { environment, name }) =>
      Effect.map(
        ask("sbatch", ["--parsable", `--job-name=${name}`, script], environment),
        ({ stdout }) => stdout.trim().split(";")[0] ?? ""
      ),
    test: (script) => Effect.map(ask("sbatch", ["--test-only", script]), ({ stderr }) => saidBy(stderr)),
    find,
    detail: (id) =>
      ask("scontrol", ["show", "job", id, "--oneliner"]).pipe(
        Effect.map(({ stdout }) => detailOf(stdout)),
        Effect.catchIf(
          ({ kind }) => kind === "refused",
          () => Effect.undefined
        )
      ),
    cancel: (id) => endedAlready(ask("scancel", [id])),
    askToSave: (id) => endedAlready(ask("scancel", ["--signal=USR1", "--batch", id])),
    clusterName: Effect.flatMap(ask("scontrol", ["show", "config"]), ({ stdout }) => {
      const [, name] = /^ClusterName\s*=\s*(\S+)/mu.exec(stdout) ?? []
      return Effect.succeed(name ?? "")
    }),
    mpiPlugins: Effect.map(ask("srun", ["--mpi=list"]), ({ stderr, stdout }) =>
      `${stdout}\n${stderr}`.split(/\s+/u).filter((word) => /^\w+$/u.test(word))
    )
  }
}

/** What has ended cannot be signalled, which is as well. */
const endedAlready = (asking: Effect.Effect<Answer, SlurmError>): Effect.Effect<void, SlurmError> =>
  asking.pipe(
    Effect.asVoid,
    Effect.catchIf(
      ({ kind }) => kind === "refused",
      () => Effect.void
    )
  )

/** Not in any of what we ask for, names and paths of ours included. */
const separator = "\u001F"
const decodeStates = Schema.decodeUnknownEffect(
  Schema.Array(Schema.Struct({ ...JobState.fields, name: Schema.String }))
)

const squeue = (names: () => ReadonlyArray<string>) =>
  Effect.suspend(() =>
    ask("squeue", [
      "--noheader",
      "--array",
      "--states=all",
      `--name=${names().join(",")}`,
      `--format=${["%i", "%K", "%T", "%r", "%N", "%j"].join(separator)}`
    ])
  ).pipe(
    Effect.flatMap(({ stdout }) =>
      decodeStates(
        rows(stdout, separator).map(([id, task = "", state = "", reason, nodes, name]) => ({
          id,
          task: /^\d+$/u.test(task) ? Number(task) : null,
          state: stateName(state),
          reason,
          nodes,
          name
        }))
      ).pipe(Effect.mapError(unreadable("squeue")))
    )
  )

const unreadable = (command: string) => (error: Schema.SchemaError) =>
  new SlurmError({ kind: "refused", command, detail: `an answer in an unknown form: ${error.message}` })

const rows = (text: string, between: string): ReadonlyArray<ReadonlyArray<string>> =>
  text.split("\n").flatMap((line) => (line.trim() === "" ? [] : [line.split(between).map((cell) => cell.trim())]))

/** From accounting, where the cluster has it: sacct keeps what the controller forgets after minutes. */
const past = (name: string) =>
  ask("sacct", [
    "--noheader",
    "--parsable2",
    "--allocations",
    `--name=${name}`,
    "--starttime=now-30days",
    "--format=JobID,State,ExitCode,NodeList"
  ]).pipe(
    Effect.flatMap(({ stdout }) =>
      decodeStates(
        rows(stdout, "|").map(([id = "", state = "", exit, nodes]) => {
          const [, task] = /_(\d+)$/u.exec(id) ?? []
          return {
            id,
            task: task === undefined ? null : Number(task),
            state: stateName(state),
            reason: "",
            nodes,
            exit,
            name
          }
        })
      ).pipe(Effect.mapError(unreadable("sacct")))
    ),
    // No accounting here: "Slurm accounting storage is disabled".
    Effect.catchIf(
      ({ kind }) => kind !== "unreachable",
      () => Effect.succeed([])
    )
  )

const decodeDetail = Schema.decodeUnknownOption(JobState)

/** Of `scontrol show job --oneliner`: Key=value words. */
const detailOf = (text: string): JobState | undefined => {
  const value = (key: string) => new RegExp(`(?:^|\\s)${key}=(\\S*)`, "u").exec(text.split("\n")[0] ?? "")?.[1]
  const array = value("ArrayJobId")
  const task = value("ArrayTaskId")
  return Option.getOrUndefined(
    decodeDetail({
      id: array === undefined ? value("JobId") : `${array}_${task}`,
      task: task === undefined || !/^\d+$/u.test(task) ? null : Number(task),
      state: stateName(value("JobState") ?? ""),
      reason: value("Reason") ?? "",
      nodes: value("NodeList") ?? "",
      exit: value("ExitCode") ?? "0:0"
    })
  )
}
