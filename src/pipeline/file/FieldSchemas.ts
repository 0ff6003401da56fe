/** JSON Schema of the fields whose form no stage type decides, and the words that it is written in. */
import { Duration } from "effect"
import { gpuKinds } from "./Gpu.ts"
import type { SchemaNode } from "./JsonSchema.ts"
import { bytesPattern, durationPattern } from "./Quantity.ts"
import { defaultGrace, defaultRetry, edgePattern, retryable } from "./StageBlock.ts"

export const object = (properties: SchemaNode, rest: SchemaNode = {}): SchemaNode => ({
  type: "object",
  properties,
  additionalProperties: false,
  ...rest
})
export const ref = (name: string): SchemaNode => ({ $ref: `#/definitions/${name}` })
/** `description` beside a reference: draft-07 ignores what stands beside $ref. */
export const described = (node: SchemaNode, description: string): SchemaNode => ({ description, allOf: [node] })
export const oneOrMore = (item: SchemaNode): SchemaNode => ({ anyOf: [item, { type: "array", items: item }] })

export const stageName: SchemaNode = { type: "string", pattern: "^[A-Za-z][\\w-]*$" }
const duration: SchemaNode = { type: "string", pattern: durationPattern.source }
export const edge: SchemaNode = { type: "string", pattern: edgePattern.source, description: "stage.port" }

export const retry = object({
  times: { type: "integer", minimum: 0, default: defaultRetry.times, description: "Tries after the first one." },
  backoff: {
    enum: ["exponential", "constant"],
    default: defaultRetry.backoff,
    description: "How the delay between tries grows."
  },
  base: { ...duration, default: short(defaultRetry.base), description: "The first delay." },
  max: { ...duration, default: short(defaultRetry.max), description: "The longest delay." },
  jitter: {
    type: "boolean",
    default: defaultRetry.jitter,
    description: "Spreads each delay over 0.8 to 1.2 of itself."
  },
  for: {
    type: "array",
    items: { enum: [...retryable] },
    default: [...defaultRetry.for],
    description: "The failure classes that are worth another try."
  }
})

export const resources = object({
  cpus: {
    anyOf: [{ type: "integer", minimum: 1 }, { const: "all" }],
    description: "Cores that the stage takes; all: every core of this machine."
  },
  memory: {
    anyOf: [
      { type: "string", pattern: bytesPattern.source },
      { type: "number", minimum: 0 }
    ],
    description: "Memory that the stage takes, say 4GiB."
  },
  disk: {
    anyOf: [
      { type: "string", pattern: bytesPattern.source },
      { type: "number", minimum: 0 }
    ],
    description: "Disk space that the stage's work and outputs may take, say 200GiB."
  },
  gpus: { type: "integer", minimum: 0, default: 0, description: "GPUs that the stage takes." },
  ranks: {
    type: "integer",
    minimum: 1,
    description:
      "Processes that do the work together, in step; one a GPU by default. They start by the RANK, WORLD_SIZE convention: under mpirun where they are more than the GPUs."
  },
  elastic: {
    type: "array",
    items: { type: "integer", minimum: 1 },
    minItems: 2,
    maxItems: 2,
    description:
      "[fewest, most] ranks of an attempt. It begins with `ranks` (the most by default); after two attempts in a row that lost a rank the next has one less (one machine less with `nodes`). The step's batch stays the same."
  },
  nodes: {
    type: "integer",
    minimum: 1,
    description: "Machines that ranks and GPUs are spread over evenly, where a cluster runs the stage; 1 by default."
  },
  gpu: {
    enum: [...gpuKinds],
    description: "The kind of those GPUs: `plan` reckons the stage's time with their peak."
  }
})

export const timeLimit = (what: string): SchemaNode => ({ ...duration, description: `${what}, say 30s, 10m or 48h.` })

export const matrix: SchemaNode = {
  type: "object",
  description:
    "Axis → its values: one stage for each combination, named base[lr=0.001]. ${matrix.axis} stands for the value in the stage's block.",
  minProperties: 1,
  propertyNames: stageName,
  additionalProperties: { type: "array", minItems: 1, items: { type: ["string", "number", "boolean", "null"] } }
}

export const secrets: SchemaNode = {
  type: ["array", "null"],
  items: { type: "string", pattern: "^[A-Za-z_]\\w*$" },
  description: "Environment variables that the workers get and nothing writes down: names, never values."
}

export const price: SchemaNode = {
  description: "What an hour of the machine costs, for the forecasts of `tinyllama plan`.",
  anyOf: [
    { type: "string", description: "$2.50/h" },
    object(
      {
        per_hour: { type: "number", minimum: 0, description: "In the currency." },
        currency: { type: "string", minLength: 1, default: "$", description: "As it is printed." }
      },
      { required: ["per_hour"] }
    ),
    { type: "null" }
  ]
}

const conditions = (description: string): SchemaNode => ({
  ...oneOrMore({ type: "string", minLength: 1 }),
  description
})

/** What may stand in a stage beside uses, in and with, in the order in which the formatter writes it. */
export const surroundings: SchemaNode = {
  resources: described(ref("resources"), "What the stage takes of this machine while it runs."),
  executor: described(
    ref("executor"),
    "Where the stage's attempts run; over `defaults`. Moving a stage makes nothing stale."
  ),
  retry: described(ref("retry"), "When a failed attempt is tried again; over `defaults`."),
  timeout: timeLimit("The limit of one attempt"),
  grace: {
    ...timeLimit("How long a stopped attempt may take to save, before it is killed"),
    default: short(defaultGrace)
  },
  after: {
    ...oneOrMore({ type: "string" }),
    description: "Stages that must be done before, though no data comes from them."
  },
  checks: conditions(
    'Conditions on the facts of the outputs, say "tokens >= 1e6": a result that fails one is not published.'
  ),
  stop_if: conditions(
    'Conditions on live metrics that end an attempt, say "loss is nan" or "loss > 10 after 1e8 tokens".'
  ),
  secrets
}

/** "1m", "90s": in the largest unit that gives a whole number. */
function short(value: Duration.Duration): string {
  const seconds = Duration.toSeconds(value)
  const [size, unit] = (
    [
      [3600, "h"],
      [60, "m"],
      [1, "s"]
    ] as const
  ).find(([size]) => seconds % size === 0) ?? [1, "s"]
  return `${seconds / size}${unit}`
}

export const vars: SchemaNode = {
  type: "object",
  description: "Values to write once: ${vars.name} stands for them everywhere."
}
