/** Who a process is, so that others can tell later whether it still runs: a pid alone may be given to another process, now or after a reboot. */
import { createHash } from "node:crypto"
import { readFileSync, readlinkSync } from "node:fs"
import { hostname } from "node:os"
import { Schema } from "effect"

export const ProcessId = Schema.Struct({
  pid: Schema.Int,
  /** Clock ticks from boot to the process's start, from /proc; null where there is no /proc. */
  start: Schema.NullOr(Schema.String)
})
export type ProcessId = typeof ProcessId.Type

export const identify = (pid: number): ProcessId => ({ pid, start: startOf(pid) })

/** This process, for claims that it makes many of. */
export const ownIdentity = (): ProcessId => (own ??= identify(process.pid))
let own: ProcessId | undefined

/** Field 22 of /proc/<pid>/stat; the name in field 2 may hold spaces and parentheses, so count from its end. */
const startOf = (pid: number): string | null => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    // A zombie has ended: its parent has only not asked for it yet.
    return fields[0] === "Z" ? null : (fields[19] ?? null)
  } catch {
    return null
  }
}

/** Whether a process of this machine still runs. */
export const processRuns = (known: ProcessId): boolean => {
  if (known.start !== null) return startOf(known.pid) === known.start
  try {
    process.kill(known.pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM"
  }
}

/** Equal for processes that can see each other's pids: boot id and pid namespace. */
export const machineId = (): string => {
  machine ??= readMachineId()
  return machine
}
let machine: string | undefined

const readMachineId = (): string => {
  try {
    return `${readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()} ${readlinkSync("/proc/self/ns/pid")}`
  } catch {
    return hostname()
  }
}

/** This process in a few letters, for names of files: pid, start and machine. */
export const processMark = (): string => {
  mark ??= `${process.pid}-${startOf(process.pid) ?? "x"}-${machineMark()}`
  return mark
}
let mark: string | undefined

/** Whether a mark is that of a process which has ended; undefined when its processes cannot be seen from here. */
export const markEnded = (text: string): boolean | undefined => {
  const [, pid, start, where] = /^(\d+)-(\w+)-([0-9a-f]{8})$/u.exec(text) ?? []
  if (where !== machineMark()) return undefined
  return !processRuns({ pid: Number(pid), start: start === "x" || start === undefined ? null : start })
}

const machineMark = (): string => createHash("sha256").update(machineId()).digest("hex").slice(0, 8)
