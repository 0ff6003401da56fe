/** What Slurm's words for a job's state mean for an attempt. Pure. */
import { constants } from "node:os"
import { Schema } from "effect"
import { type Exit } from "../WorkerLost.ts"
import type { WorkerEvent } from "../Executor.ts"
import { FailureClass, Preempted, ShareDone, StageError } from "../../StageType.ts"
import { notSharedCode } from "./SlurmScript.ts"

/** A job, or one task of an array, as squeue or sacct has it. */
export const JobState = Schema.Struct({
  /** "123", "123_4". */
  id: Schema.String,
  /** Of an array's task. */
  task: Schema.NullOr(Schema.Int),
  /** In capitals: "PENDING", "RUNNING", "CANCELLED". */
  state: Schema.String,
  reason: Schema.String,
  nodes: Schema.String,
  /** "0:9" is code:signal; where only sacct or scontrol tell it. */
  exit: Schema.optionalKey(Schema.String)
})
export type JobState = typeof JobState.Type

/** Our own word for a job that neither squeue nor sacct knows any more. */
export const vanished = "VANISHED"

/** States that a job does not leave any more. All others, unknown ones too, are those of a job that may still write. */
const final: ReadonlySet<string> = new Set([
  "COMPLETED",
  "FAILED",
  "TIMEOUT",
  "OUT_OF_MEMORY",
  "NODE_FAIL",
  "BOOT_FAIL",
  "DEADLINE",
  "PREEMPTED",
  "CANCELLED",
  "REVOKED",
  "LAUNCH_FAILED",
  "RECONFIG_FAIL",
  vanished
])

export const hasEnded = ({ state }: Pick<JobState, "state">): boolean => final.has(state)
export const isRunning = ({ state }: Pick<JobState, "state">): boolean => state === "RUNNING" || state === "COMPLETING"

/** "CANCELLED by 1000" of sacct, and the short forms of squeue. */
export const stateName = (text: string): string => text.trim().split(/[\s+]/u)[0]?.toUpperCase() ?? ""

/** One line about a job: "pending (Resources)", "running on node7". */
export const describeState = ({ nodes, reason, state }: Pick<JobState, "nodes" | "reason" | "state">): string => {
  const word = state.toLowerCase().replaceAll("_", " ")
  if (state === "PENDING") return `pending (${meaningOf(reason)})`
  if (isRunning({ state })) return `${word} on ${nodes}`
  return reason === "" || reason === "None" ? word : `${word} (${reason})`
}

/** Slurm's reasons that raise the question what to do. */
const meanings: Readonly<Record<string, string>> = {
  BeginTime: "BeginTime: it was requeued, and waits a moment",
  Priority: "Priority: others are before it",
  PartitionTimeLimit: "PartitionTimeLimit: it asks for more time than the partition gives; it will not start",
  PartitionNodeLimit: "PartitionNodeLimit: it asks for more nodes than the partition gives; it will not start",
  PartitionDown: "PartitionDown: the partition takes no jobs now",
  JobHeldUser: "JobHeldUser: held; scontrol release lets it go on",
  JobHeldAdmin: "JobHeldAdmin: held by an administrator",
  QOSMaxJobsPerUserLimit: "QOSMaxJobsPerUserLimit: you have as many jobs running as the quality of service allows",
  AssocGrpCPUMinutesLimit: "AssocGrpCPUMinutesLimit: the account's hours are used up"
}
const meaningOf = (reason: string): string =>
  meanings[reason] ?? (reason === "" || reason === "None" ? "just submitted" : reason)

/** What the job itself left of its end: exit.json. */
export const ExitRecord = Schema.Struct({
  code: Schema.Int,
  /** time: Slurm said that the wall time is nearly over (or the runner asked it to end); end: that the machines are taken away. */
  notice: Schema.Literals(["none", "time", "end"]),
  restart: Schema.Int
})
export type ExitRecord = typeof ExitRecord.Type

export interface Ended {
  /** undefined: neither squeue nor sacct knows the job any more. */
  readonly job: JobState | undefined
  /** The attempt's last word, of its last start. */
  readonly word: WorkerEvent | undefined
  readonly record: ExitRecord | undefined
  /** The wall time was the stage's own timeout. */
  readonly timeoutIsLimit: boolean
}

export type Verdict =
  | { readonly _tag: "Completed"; readonly word: WorkerEvent & { readonly _tag: "Completed" } }
  | { readonly _tag: "Timeout" }
  /** Ended without a word; `exit` and the job's log tell more. */
  | { readonly _tag: "Lost"; readonly exit: Exit; readonly how: string }
  | { readonly _tag: "Failure"; readonly error: StageError | Preempted | ShareDone }

const isFailureClass = Schema.is(FailureClass)

/** The worker's own word counts; where there is none, Slurm's. */
export const verdictOf = ({ job, record, timeoutIsLimit, word }: Ended): Verdict => {
  const failure = (error: StageError | Preempted | ShareDone): Verdict => ({ _tag: "Failure", error })
  switch (word?._tag) {
    case "Completed":
      return { _tag: "Completed", word }
    case "Shared":
      return failure(new ShareDone({ done: word.done, total: word.total, unit: word.unit }))
    case "Failed":
      return failure(
        new StageError({
          failure: isFailureClass(word.failure) ? word.failure : "internal",
          message: word.message,
          next: word.next
        })
      )
    case "Preempted":
      if (record?.notice === "time" && timeoutIsLimit) return { _tag: "Timeout" }
      return failure(taken(job, word.message))
    default:
      return withoutWord(job, record)
  }
}

/** Slurm took the machines away, or someone ended the job: it saved, and a retry policy may name it. */
const taken = (job: JobState | undefined, message: string): StageError | Preempted =>
  job?.state === "PREEMPTED" || job?.state === "NODE_FAIL"
    ? new StageError({
        failure: "preempted",
        message: `Slurm job ${job.id} was preempted: ${message}`,
        next: "run again to go on, or name preempted in the stage's retry.for to have that done"
      })
    : new Preempted({ message })

const withoutWord = (job: JobState | undefined, record: ExitRecord | undefined): Verdict => {
  const failure = (name: FailureClass, message: string, next: string): Verdict => ({
    _tag: "Failure",
    error: new StageError({ failure: name, message, next })
  })
  const exit = exitOf(job, record)
  if (exit.code === notSharedCode)
    return failure(
      "invalid-input",
      `Slurm job ${job?.id ?? ""} on ${job?.nodes ?? "its node"} does not see the run's folder or this program as they are here: the file system is not shared`,
      "keep the runs folder (--runs) and this program on a file system that all nodes have, or choose nodes that have it (executor.constraint)"
    )
  if (job === undefined || job.state === vanished) return { _tag: "Lost", exit, how: "Slurm does not know it any more" }
  switch (job.state) {
    case "OUT_OF_MEMORY":
      return failure(
        "out-of-memory",
        `Slurm job ${job.id} took more memory than it was given`,
        "raise resources.memory, or ask for less at once (a smaller micro_batch or seq_len)"
      )
    case "TIMEOUT":
    case "DEADLINE":
      return { _tag: "Timeout" }
    case "PREEMPTED":
      return failure(
        "preempted",
        `Slurm job ${job.id} was preempted before it could save; it goes on from its last checkpoint`,
        "run again to go on, or name preempted in the stage's retry.for to have that done"
      )
    case "NODE_FAIL":
    case "BOOT_FAIL":
    case "LAUNCH_FAILED":
      return failure(
        "worker-lost",
        `Slurm job ${job.id} lost its node ${job.nodes} (${describeState(job)})`,
        "run again: the stage goes on from its last checkpoint"
      )
    case "CANCELLED":
      return {
        _tag: "Failure",
        error: new Preempted({
          message: `Slurm job ${job.id} was cancelled; the stage goes on from its last checkpoint`
        })
      }
    default:
      return logsMissing(job, exit) ?? { _tag: "Lost", exit, how: describeState(job) }
  }
}

/** Slurm's sign that the job's first act, opening its log, failed: 53 where a signal stands. */
const logsMissing = (job: JobState, exit: Exit): Verdict | undefined => {
  if (exit.code !== 53 && job.exit !== "0:53") return undefined
  return {
    _tag: "Failure",
    error: new StageError({
      failure: "invalid-input",
      message: `Slurm job ${job.id} could not open its log in the attempt's folder: ${job.nodes} does not have the file system of the run`,
      next: "keep the runs folder (--runs) on a file system that all nodes have"
    })
  }
}

/** Shells, and srun, tell a signal as 128 and its number. */
const exitOf = (job: JobState | undefined, record: ExitRecord | undefined): Exit => {
  const [, code = "0", signal = "0"] = /^(\d+):(\d+)$/u.exec(job?.exit ?? "") ?? []
  const own = record?.code ?? Number(code)
  const name = signalNamed(Number(signal)) ?? signalNamed(own - 128)
  return name === undefined ? { code: own, signal: null } : { code: null, signal: name }
}

/** The names of node:os are those of NodeJS.Signals. */
const signalNamed = (number: number): NodeJS.Signals | undefined =>
  Object.entries(constants.signals).find(([, value]) => value === number)?.[0] as NodeJS.Signals | undefined
