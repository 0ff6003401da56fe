/**
 * The batch script of an attempt, written out so that it can be read, and submitted by hand: what is asked of Slurm, what the job checks, how the
 * ranks are started, how it saves and ends. Pure.
 */
import { Duration } from "effect"
import type { SlurmOptions } from "../../file/ExecutorBlock.ts"
import type { Resources } from "../../file/ResolvedPipeline.ts"

/** How ranks find each other: by MPI through srun or mpirun, or by RANK, MASTER_ADDR and so on alone. */
export type RankLauncher = "none" | "pmix" | "pmi2" | "mpirun"

export interface ScriptInput {
  readonly name: string
  readonly run: string
  readonly stage: string
  readonly attempt: number
  /** The attempt's folder, absolute. */
  readonly folder: string
  readonly resources: Resources
  readonly options: SlurmOptions
  readonly timeout: Duration.Duration | undefined
  readonly grace: Duration.Duration
  readonly launcher: RankLauncher
  /** Of the array; 0: no array. */
  readonly tasks: number
  /** Node with its flags, and the worker's entry. */
  readonly command: { readonly node: string; readonly flags: ReadonlyArray<string>; readonly worker: string }
  /** The key's fence, and this attempt's number in it. */
  readonly fence: { readonly file: string; readonly counter: number }
  /** Folders to empty at each start; of an array's task k they hold {task}. */
  readonly outputs: ReadonlyArray<string>
}

/** The job's exit code where its machine does not see the runner's files. */
export const notSharedCode = 66
/** The job's exit code once it saved and stopped. */
export const preemptedCode = 75

/** Where an attempt's job, or task of an array, has its files. */
export const placeOf = (folder: string, task?: number | "%a"): string =>
  task === undefined ? folder : `${folder}/shares/${task}`

export const slurmScript = (input: ScriptInput): string =>
  [
    "#!/bin/bash",
    ...about(input),
    ...directives(input).map((directive) => `#SBATCH ${directive}`),
    "",
    ...checks(input),
    "",
    ...start(input),
    "",
    ...notices,
    "",
    ...setup(input),
    ...workers(input),
    "",
    ...ending(input),
    ""
  ].join("\n")

const about = ({ attempt, run, stage, tasks }: ScriptInput): ReadonlyArray<string> => [
  `# ${tasks === 0 ? "Attempt" : "Shares of attempt"} ${attempt} of stage ${stage} in run ${run}, written by tinyllama.`,
  "# Reads job.json, appends to events.jsonl, says in exit.json how it ended. A file named stop beside them: save and end for good."
]

/** What stands behind #SBATCH, and what `sbatch --test-only` is asked with. */
export const directives = (
  input: Pick<
    ScriptInput,
    "name" | "run" | "stage" | "folder" | "resources" | "options" | "timeout" | "grace" | "tasks"
  >
): ReadonlyArray<string> => {
  const { folder, grace, name, options, run, stage, tasks } = input
  const given = (option: string, value: string | undefined) => (value === undefined ? [] : [`--${option}=${value}`])
  const limit = timeLimit(input)
  const place = tasks === 0 ? folder : placeOf(folder, "%a")
  // Slurm looks at its clock once a minute: it may send the signal that much early, never late.
  const notice = Math.min(65_535, Math.ceil(Duration.toSeconds(grace)) + 30)
  return [
    `--job-name=${name}`,
    `--comment="tinyllama run ${run} stage ${stage}"`,
    ...given("partition", options.partition),
    ...given("account", options.account),
    ...given("qos", options.qos),
    ...given("constraint", options.constraint),
    ...asked(input),
    ...given("time", limit === undefined ? undefined : slurmTime(limit)),
    ...(tasks === 0 ? [] : [`--array=1-${tasks}`]),
    `--signal=B:USR1@${notice}`,
    options.requeue ? "--requeue" : "--no-requeue",
    "--open-mode=append",
    `--output="${place}/stdout.log"`,
    `--error="${place}/stderr.log"`,
    ...options.extra
  ]
}

/** The wall time of one job; undefined: the partition's. */
export const timeLimit = ({ options, timeout }: Pick<ScriptInput, "options" | "timeout">) => options.time ?? timeout

const asked = ({ resources, tasks }: Pick<ScriptInput, "resources" | "tasks">): ReadonlyArray<string> => {
  const { cpus, gpus, memory, nodes = 1 } = resources
  const ranks = tasks === 0 ? resources.ranks : 1
  const perNode = Math.ceil(ranks / nodes)
  return [
    `--nodes=${nodes}`,
    `--ntasks=${ranks}`,
    `--ntasks-per-node=${perNode}`,
    ...(cpus === "all" ? ["--exclusive"] : [`--cpus-per-task=${Math.max(1, Math.floor(cpus / ranks))}`]),
    ...(gpus === 0 ? [] : [`--gpus-per-node=${Math.ceil(gpus / nodes)}`]),
    ...(memory === undefined ? [] : [`--mem=${Math.ceil(memory / nodes / 2 ** 20)}M`])
  ]
}

/** "1-02:03:00": days, hours, minutes, rounded up to whole minutes, which is what Slurm counts in. */
export const slurmTime = (limit: Duration.Duration): string => {
  const minutes = Math.max(1, Math.ceil(Duration.toMinutes(limit)))
  const two = (value: number) => String(value).padStart(2, "0")
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor(minutes / 60) % 24]
  return `${days === 0 ? "" : `${days}-`}${two(hours)}:${two(minutes % 60)}:00`
}

/** As one word of a shell. */
export const quoted = (text: string): string => `'${text.replaceAll("'", String.raw`'\''`)}'`

const checks = ({ command, fence, folder, name, tasks }: ScriptInput): ReadonlyArray<string> => [
  `place=${quoted(folder)}${tasks === 0 ? "" : '/shares/"$SLURM_ARRAY_TASK_ID"'}`,
  `node=${quoted(command.node)}`,
  `worker=${quoted(command.worker)}`,
  "",
  "# This machine must see what the runner wrote.",
  `if ! grep -qs ${quoted(`"${name}"`)} "$place/submission.json" || [ ! -x "$node" ] || [ ! -r "$worker" ]; then`,
  '  echo "tinyllama: $(hostname) does not see $place, $node and $worker as the machine that submitted this job does" >&2',
  `  exit ${notSharedCode}`,
  "fi",
  'cd "$place" || exit 66',
  "",
  "# The work folder belongs to the newest attempt. An older job that is started after all ends here; one that still runs ends itself.",
  `fence=${quoted(fence.file)}`,
  `newest=$(sed -n 's/.*"counter":\\([0-9]*\\).*/\\1/p' "$fence" 2> /dev/null)`,
  `if [ "\${newest:-0}" -gt ${fence.counter} ]; then`,
  '  echo "tinyllama: a newer attempt has the work folder" >&2',
  `  exit ${preemptedCode}`,
  "fi",
  ...(tasks === 0
    ? [
        `printf '{"counter":%d,"restart":%d}' ${fence.counter} "\${SLURM_RESTART_COUNT:-0}" > "$fence.$SLURM_JOB_ID" && mv "$fence.$SLURM_JOB_ID" "$fence"`
      ]
    : [])
]

const start = ({ outputs, tasks }: ScriptInput): ReadonlyArray<string> => {
  const folders = outputs.map((folder) =>
    tasks === 0 ? quoted(folder) : quoted(folder).replaceAll("{task}", `'"$SLURM_ARRAY_TASK_ID"'`)
  )
  return [
    "# A job that comes back from the queue begins anew; what can be resumed lies in the work folder.",
    `rm -rf exit.json ${folders.join(" ")}`,
    `mkdir -p ${folders.join(" ")}`,
    `printf '{"_tag":"Started","host":"%s","restart":%d}\\n' "$(hostname)" "\${SLURM_RESTART_COUNT:-0}" >> events.jsonl`,
    "",
    "# Where rank 0 listens: the first machine, by the address that Slurm itself reaches it at, and a port that the job's number decides.",
    'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    `address=$(scontrol show node "$first" --oneliner | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')`,
    "export MASTER_ADDR=${address:-$first} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))"
  ]
}

const notices: ReadonlyArray<string> = [
  "# USR1: the time is nearly over, or the runner wants it to end. TERM: Slurm takes the machines away. Either way the ranks save and stop.",
  "notice=none",
  'tell() { notice=$1; [ -z "${ranks:-}" ] || kill -USR2 "$ranks"; }',
  "trap 'tell time' USR1",
  "trap 'tell end' TERM"
]

const setup = ({ options }: ScriptInput): ReadonlyArray<string> =>
  options.setup.trim() === "" ? [] : ["# executor.setup", options.setup.trimEnd(), ""]

const workers = (input: ScriptInput): ReadonlyArray<string> => {
  const { command, launcher, resources, tasks } = input
  const ranks = tasks === 0 ? resources.ranks : 1
  const run = `"$node" ${command.flags.map((flag) => `${flag} `).join("")}"$worker" job.json --events=events.jsonl`
  const several = ranks === 1 ? "" : `; ranks but the first have logs of their own`
  const log = (rank: string) => `[ "${rank}" = 0 ] || exec >> "rank-${rank}.stdout.log" 2>> "rank-${rank}.stderr.log"`
  if (launcher === "mpirun")
    return [
      `# The workers${several}. mpirun finds the machines by itself.`,
      "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none",
      `mpirun -n ${ranks} bash -c '${log("$OMPI_COMM_WORLD_RANK")}; exec "$@"' rank \\`,
      `  ${run} &`,
      "ranks=$!"
    ]
  const convention =
    launcher === "none" && ranks > 1
      ? "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID; "
      : ""
  const options = [
    `--ntasks=${ranks}`,
    `--mpi=${launcher}`,
    "--kill-on-bad-exit=1",
    ...(resources.cpus === "all"
      ? ["--cpu-bind=none"]
      : [`--cpus-per-task=${Math.max(1, Math.floor(resources.cpus / ranks))}`]),
    ...(resources.gpus === 0 ? [] : ["--gpu-bind=none"])
  ]
  return [
    `# The workers${several}.`,
    `srun ${options.join(" ")} \\`,
    `  bash -c '${convention}${log("$SLURM_PROCID")}; exec "$@"' rank \\`,
    `  ${run} &`,
    "ranks=$!"
  ]
}

const ending = ({ options, timeout }: ScriptInput): ReadonlyArray<string> => {
  // The stage's own timeout is final; any other wall time is only the end of this job.
  const goesOn = options.requeue && (options.time !== undefined || timeout === undefined)
  return [
    "# A signal ends a wait early, not the ranks.",
    'until wait "$ranks"; ! kill -0 "$ranks" 2> /dev/null; do :; done',
    'wait "$ranks"',
    "code=$?",
    `tail -n 1 events.jsonl | grep -q '"_tag":"Preempted"' && code=${preemptedCode}`,
    `printf '{"code":%d,"notice":"%s","restart":%d}\\n' "$code" "$notice" "\${SLURM_RESTART_COUNT:-0}" > exit.json.tmp && mv exit.json.tmp exit.json`,
    ...(goesOn
      ? [
          "# Saved because the time is nearly over: back into the queue, to go on.",
          `if [ "$code" = ${preemptedCode} ] && [ "$notice" = time ] && [ ! -e stop ]; then`,
          '  scontrol requeue "$SLURM_JOB_ID" && sleep 60',
          "fi"
        ]
      : []),
    'exit "$code"'
  ]
}
