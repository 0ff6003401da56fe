/** What a preflight says of pipelines of the program's own stages, from their parameters and from facts of what lies above. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Layer, Result } from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import { loadPipelineText } from "../../../src/pipeline/file/Pipeline.ts"
import type { Plan, StageFacts } from "../../../src/pipeline/plan/Plan.ts"
import { type Finding, preflight, PreflightRules } from "../../../src/pipeline/plan/Preflight.ts"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { StageError } from "../../../src/pipeline/StageType.ts"
import { rules } from "../../../src/stages/preflight/rules.ts"
import * as registry from "../../../src/stages/registry.ts"
import { serve } from "../../data/HttpTestServer.ts"

const services = Layer.mergeAll(
  registry.layer,
  FetchHttpClient.layer,
  Layer.succeed(PreflightRules, Effect.succeed(rules))
).pipe(Layer.provideMerge(Runs.layer("/nowhere/runs")), Layer.provideMerge(NodeServices.layer))

interface Known {
  /** Stage → port → facts. */
  readonly facts?: Readonly<Record<string, StageFacts>>
  readonly unreadable?: Readonly<Record<string, StageError>>
  readonly thorough?: boolean
}

/** Findings on a pipeline whose stages all will run. */
const findingsOn = Effect.fnUntraced(function* (
  stages: string,
  { facts = {}, thorough = false, unreadable = {} }: Known = {}
) {
  const pipeline = yield* loadPipelineText({
    label: "p.yaml",
    text: `version: 1\nname: p\nstages:\n${stages}`,
    baseDirectory: "/nowhere"
  })
  const plan: Plan = {
    stages: pipeline.stages.map(({ name, type }) => ({
      stage: name,
      uses: type.name,
      status: "stale",
      key: undefined,
      from: undefined,
      reasons: [],
      change: undefined,
      resumesAt: undefined,
      resumesFrom: undefined,
      estimate: undefined
    })),
    facts: new Map(Object.entries(facts)),
    decisions: new Map(),
    observed: new Map(Object.entries(unreadable).map(([stage, error]) => [stage, Result.fail(error)]))
  }
  return yield* preflight(pipeline, plan, { thorough, all: false })
})

const say = (findings: ReadonlyArray<Finding>, subject: string, stage: string) =>
  findings
    .filter((found) => found.subject === subject && found.stage === stage)
    .map(({ detail, next = "", state }) => `${state}: ${detail}. ${next}`)
    .join("\n")

const above = [
  "  text: { uses: download, with: { sources: [{ path: a.txt }] } }",
  "  tokens: { uses: tokenize, in: { documents: [text.documents] } }",
  "  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 256 } }",
  ""
].join("\n")
const base = (settings: string) =>
  `${above}  base: { uses: pretrain, in: { data: packed.dataset }, with: { model: tinyllama-demo, ${settings} } }\n`
const dataset = (facts: StageFacts[string]) => ({ facts: { packed: { dataset: facts } } })
const good = { train_blocks: 1000, seq_len: 256, vocabulary_size: 32_000 }

interface Case {
  readonly name: string
  readonly settings: string
  readonly data: StageFacts[string]
  readonly subject: string
  readonly says: RegExp
}

const pretraining: ReadonlyArray<Case> = [
  {
    name: "enough tokens",
    settings: "max_tokens: 256000, batch_tokens: 2048",
    data: good,
    subject: "tokens",
    says: /^ok: about 256,000 in packed\.dataset for a budget of 256,000/u
  },
  {
    name: "a budget above the data",
    settings: "max_tokens: 512000, batch_tokens: 2048",
    data: good,
    subject: "tokens",
    says: /^warning: .*trained on 2\.0 times\. add text, or lower max_tokens to 256,000/u
  },
  {
    name: "a budget far above the data",
    settings: "max_tokens: 2560000, batch_tokens: 2048",
    data: good,
    subject: "tokens",
    says: /^warning: .*10\.0 times, and past 4 times/u
  },
  {
    name: "no training block",
    settings: "max_tokens: 5120, batch_tokens: 512",
    data: { ...good, train_blocks: 0 },
    subject: "tokens",
    says: /^warning: packed\.dataset will hardly have a training block\. give it more text/u
  },
  {
    name: "data not made yet",
    settings: "max_tokens: 5120, batch_tokens: 512",
    data: {},
    subject: "tokens",
    says: /^ok: a budget of 5,120; how many packed\.dataset has is known once it is made/u
  },
  {
    name: "another vocabulary",
    settings: "max_tokens: 5120, batch_tokens: 512",
    data: { ...good, vocabulary_size: 128_256 },
    subject: "vocabulary",
    says: /^missing: 32000 in the model, 128256 in packed\.dataset\. set model\.vocab_size to 128256/u
  },
  {
    name: "the same vocabulary",
    settings: "max_tokens: 5120, batch_tokens: 512",
    data: good,
    subject: "vocabulary",
    says: /^ok: 32000/u
  },
  {
    name: "sequences beyond the context",
    settings: "max_tokens: 5120, batch_tokens: 512",
    data: { ...good, seq_len: 512 },
    subject: "context",
    says: /^missing: packed\.dataset has sequences of 512 tokens, the model reads 256\. set seq_len of the pack stage to at most 256/u
  },
  {
    name: "a batch below one sequence",
    settings: "max_tokens: 5120, batch_tokens: 255",
    data: good,
    subject: "batch",
    says: /^missing: batch_tokens 255 is less than one sequence of 256 tokens/u
  },
  {
    name: "a budget below one step",
    settings: "max_tokens: 1000, batch_tokens: 2048",
    data: good,
    subject: "batch",
    says: /^missing: one step takes 2,048 tokens, the budget is 1,000/u
  },
  {
    name: "a document mask that the data do not serve",
    settings: "max_tokens: 51200, batch_tokens: 2048, document_mask: true",
    data: good,
    subject: "documents",
    says: /^missing: document_mask is true, but packed\.dataset does not tell .* set attention_reset: true on packed,/u
  },
  {
    name: "a document mask that the data serve",
    settings: "max_tokens: 51200, batch_tokens: 2048, document_mask: true",
    data: { ...good, attention_reset: true },
    subject: "documents",
    says: /^ok: packed\.dataset tells where documents begin/u
  },
  {
    name: "a document mask on data not made yet",
    settings: "max_tokens: 51200, batch_tokens: 2048, document_mask: true",
    data: {},
    subject: "documents",
    says: /^ok: whether packed\.dataset tells .* is known once it is made/u
  },
  {
    name: "nothing of documents without a mask",
    settings: "max_tokens: 51200, batch_tokens: 2048",
    data: good,
    subject: "documents",
    says: /^$/u
  },
  {
    name: "a micro-batch that is not full",
    settings: "max_tokens: 51200, batch_tokens: 2560, micro_batch: 8",
    data: good,
    subject: "batch",
    says: /^warning: 10 sequences a step in micro-batches of 8: the last .* not full\. set batch_tokens to a multiple of 2,048/u
  },
  {
    name: "a batch with a remainder",
    settings: "max_tokens: 51200, batch_tokens: 2100, micro_batch: 8",
    data: good,
    subject: "batch",
    says: /^ok: 8 sequences a step in micro-batches of 8: 2,048 of batch_tokens 2,100/u
  }
]

describe("a preflight of pretraining", () => {
  for (const { data, name, says, settings, subject } of pretraining)
    it.effect(`tells ${name}`, () =>
      Effect.gen(function* () {
        assert.match(say(yield* findingsOn(base(settings), dataset(data)), subject, "base"), says)
      }).pipe(Effect.provide(services))
    )

  it.effect("tells what training takes on each of a cluster's GPUs, by strategy and number of ranks", () =>
    Effect.gen(function* () {
      const on = (settings: string) =>
        Effect.map(
          findingsOn(
            base(`max_tokens: 5120000, batch_tokens: 65536, micro_batch: 4, ${settings}`).replace(
              / \} \}\n$/u,
              " }, resources: { gpus: 16 }, executor: { kind: slurm } }\n"
            ),
            dataset(good)
          ),
          (findings) => say(findings, "GPU memory", "base")
        )
      const sharded = yield* on("strategy: fsdp")
      assert.match(sharded, /^ok: training takes [\d.]+ GB on each of 16 GPUs \(strategy fsdp\)/u)
      assert.match(
        yield* on("strategy: hsdp, shard_size: 5"),
        /^missing: hsdp: shard_size \(5\) must divide the number of ranks \(16\)\. set shard_size to a number that divides resources\.ranks/u
      )
      assert.strictEqual(yield* on("device: cpu"), "")
    }).pipe(Effect.provide(services))
  )

  it.effect("tells GPUs that are not there, and batches that they cannot share", () =>
    Effect.gen(function* () {
      const on = (gpus: number, tokens: number) =>
        findingsOn(
          base(`max_tokens: 512000, batch_tokens: ${tokens}`).replace(
            / \} \}\n$/u,
            ` }, resources: { gpus: ${gpus} } }\n`
          ),
          dataset(good)
        )
      const findings = yield* on(8, 1024)
      assert.match(say(findings, "GPUs", "base"), /^missing: asks for 8; 0 can be used here\. lower resources\.gpus/u)
      assert.match(
        say(findings, "batch", "base"),
        /^missing: a step of 4 sequences leaves some of 8 GPUs without work/u
      )
      assert.match(say(yield* on(3, 2048), "batch", "base"), /^warning: .*3 does not divide 8/u)
    }).pipe(Effect.provide(services))
  )
})

describe("a preflight of what comes after", () => {
  const chat = [
    base("max_tokens: 5120, batch_tokens: 512"),
    "  final: { uses: checkpoint, in: { state: base.state } }\n",
    "  talk: { uses: download, with: { sources: [{ path: talk.jsonl }] } }\n",
    "  chat: { uses: sft, in: { base: final.checkpoint, conversations: talk.documents }, with: { seq_len: 512 } }\n"
  ].join("")

  it.effect("tells conversations longer than the base model's context", () =>
    Effect.gen(function* () {
      const findings = yield* findingsOn(chat, { facts: { final: { checkpoint: { context_length: 256 } } } })
      assert.match(
        say(findings, "context", "chat"),
        /^warning: seq_len 512 exceeds what final\.checkpoint reads: .* cut at 256 tokens/u
      )
      const fits = yield* findingsOn(chat, { facts: { final: { checkpoint: { context_length: 2048 } } } })
      assert.match(say(fits, "context", "chat"), /^ok: /u)
    }).pipe(Effect.provide(services))
  )

  it.effect("tells models and data of different tokenizers", () =>
    Effect.gen(function* () {
      const stages = `${chat}  scores: { uses: eval, in: { models: [chat.model], data: packed.dataset } }\n`
      const facts = { packed: { dataset: { tokenizer_digest: "a" } }, chat: { model: { tokenizer_digest: "b" } } }
      assert.match(
        say(yield* findingsOn(stages, { facts }), "vocabulary", "scores"),
        /^missing: chat\.model and packed\.dataset come from different tokenizers/u
      )
    }).pipe(Effect.provide(services))
  )
})

describe("a preflight of any pipeline", () => {
  it.effect("tells files that are not there, and memory and cores that the machine lacks", () =>
    Effect.gen(function* () {
      const stages =
        "  text: { uses: download, with: { sources: [{ path: a.txt }] }, resources: { memory: 900TB, cpus: 4096 } }\n"
      const error = new StageError({ failure: "invalid-input", message: "a.txt: no such file", next: "write it" })
      const findings = yield* findingsOn(stages, { unreadable: { text: error } })
      assert.strictEqual(say(findings, "files", "text"), "missing: a.txt: no such file. write it")
      assert.match(say(findings, "memory", "text"), /^missing: asks for 900 TB; this machine has/u)
      assert.match(say(findings, "cores", "text"), /^warning: asks for 4096; it gets \d+/u)
    }).pipe(Effect.provide(services))
  )

  it.effect("tells a disk that is too small for what stages ask", () =>
    Effect.gen(function* () {
      const stages = "  text: { uses: download, with: { sources: [{ path: a.txt }] }, resources: { disk: 900TB } }\n"
      const found = (yield* findingsOn(stages)).find(({ subject }) => subject === "disk")
      assert.deepInclude(found, { state: "missing" })
      assert.match(found?.detail ?? "", /^needs up to 900 TB; .* free at \/nowhere\/runs/u)
    }).pipe(Effect.provide(services))
  )

  it.effect("tells secrets that are not set", () =>
    Effect.gen(function* () {
      const stages = "  text: { uses: download, with: { sources: [{ path: a.txt }] }, secrets: [NOT_SET_ANYWHERE] }\n"
      const found = (yield* findingsOn(stages)).find(({ subject }) => subject === "secrets")
      assert.deepInclude(found, { state: "missing" })
      assert.match(
        `${found?.detail} ${found?.next}`,
        /NOT_SET_ANYWHERE of stage text is not set export NOT_SET_ANYWHERE/u
      )
    }).pipe(Effect.provide(services))
  )
})

describe("a preflight of sources on the network", () => {
  it.effect("tells that a failed connection is not tried again", () =>
    Effect.gen(function* () {
      const stages =
        "  text: { uses: download, with: { sources: [{ url: https://example.org/a.txt }] }, retry: { times: 0 } }\n"
      assert.match(say(yield* findingsOn(stages), "retries", "text"), /^warning: .*not tried again/u)
    }).pipe(Effect.provide(services))
  )

  const hub = (endpoint: string, id: string) =>
    `  text: { uses: download, with: { endpoint: "${endpoint}", sources: [{ hub: ${id}, include: "*.jsonl" }] } }\n`
  const ask = (id: string, token?: string) =>
    Effect.gen(function* () {
      const { base: endpoint } = yield* serve((request, response) => {
        const authorized = request.headers.authorization === "Bearer let-me-in"
        const send = (status: number, body: unknown = {}) => response.writeHead(status).end(JSON.stringify(body))
        if (request.url?.endsWith("/auth-check") === true) return send(authorized ? 200 : 403)
        if (request.url?.includes("/me/open/") === true)
          return send(200, { gated: false, cardData: { license: "mit" } })
        if (request.url?.includes("/me/bare/") === true) return send(200, { gated: false })
        if (request.url?.includes("/me/gated/") === true)
          return send(200, { gated: "auto", cardData: { license: ["cc-by-4.0"] } })
        return send(authorized ? 404 : 401)
      })
      return say(yield* findingsOn(hub(endpoint, id), { thorough: true }), "hub", "text")
    }).pipe(
      Effect.scoped,
      Effect.provide(
        Layer.merge(
          services,
          ConfigProvider.layer(ConfigProvider.fromUnknown(token === undefined ? {} : { HF_TOKEN: token }))
        )
      )
    )

  it.live("tells what the hub lets this account read, and under which licence", () =>
    Effect.gen(function* () {
      assert.match(yield* ask("me/open"), /^ok: me\/open can be read; licence: mit/u)
      assert.match(yield* ask("me/bare"), /^warning: .*declares no licence/u)
      assert.match(yield* ask("me/gated"), /^missing: me\/gated is gated.*set HF_TOKEN/u)
      assert.match(
        yield* ask("me/gated", "stranger"),
        /^missing: me\/gated is gated, and HF_TOKEN's account has not been let in/u
      )
      assert.match(yield* ask("me/gated", "let-me-in"), /^ok: .*cc-by-4\.0/u)
      assert.match(yield* ask("me/private"), /^missing: .*\(the hub answers 401\)/u)
      assert.match(yield* ask("me/nothing", "let-me-in"), /^missing: .*no revision main/u)
    })
  )

  it.live("does not fail where the hub cannot be reached", () =>
    Effect.gen(function* () {
      const findings = yield* findingsOn(hub("http://127.0.0.1:9", "me/open"), { thorough: true })
      assert.match(say(findings, "hub", "text"), /^warning: me\/open: http:\/\/127\.0\.0\.1:9 cannot be reached/u)
    }).pipe(Effect.provide(services))
  )
})
