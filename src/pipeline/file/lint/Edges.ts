/** Rules about the graph: results that nobody takes, order that edges give already, edges given twice. */
import { Result } from "effect"
import type { ArtifactType } from "../../../artifacts/Artifact.ts"
import { StageNames } from "../Matrix.ts"
import type { ResolvedStage } from "../ResolvedPipeline.ts"
import type { MappingNode } from "../YamlSource.ts"
import { finding, mapping, plainText, type Rule, writtenName, writtenStages } from "./Finding.ts"

/** What only other stages can use. The rest is what people take away, whether or not a stage takes it too. */
const intermediate: ReadonlyArray<ArtifactType> = ["Documents", "TokenShards", "PackedDataset", "TrainingState"]

export const unusedStage: Rule = ({ pipeline, root }) => {
  const groups = new Map(pipeline.stages.map((stage) => [stage.name, writtenName(stage)]))
  const used = new Set(pipeline.stages.flatMap(({ needs }) => needs.map((need) => groups.get(need))))
  return writtenStages(pipeline).flatMap(([name, stage]) => {
    const outputs = Object.entries(stage.type.outputs)
    const key = mapping(root, "stages").get(name)?.key
    if (key === undefined || used.has(name) || outputs.length === 0) return []
    if (!outputs.every(([, { type }]) => intermediate.includes(type))) return []
    const made = outputs.map(([port, { type }]) => `${name}.${port} (${type})`).join(", ")
    const message = `no stage takes ${made}`
    return [finding("unused-stage", key, `stages.${name}`, message, "join it to the stage that should, or remove it")]
  })
}

export const redundantAfter: Rule = ({ pipeline, root }) => {
  const byName = new Map(pipeline.stages.map((stage) => [stage.name, stage]))
  const names = new StageNames(pipeline.stages)
  const reaches = (from: string, target: string, seen = new Set<string>()): boolean => {
    if (from === target) return true
    if (seen.has(from)) return false
    seen.add(from)
    return (byName.get(from)?.needs ?? []).some((need) => reaches(need, target, seen))
  }
  return writtenStages(pipeline).flatMap(([written, stage]) =>
    afterItems(root, written).flatMap(({ name, node, path }) => {
      const targets = Result.getOrElse(names.find(name), (): ReadonlyArray<string> => [])
      const via = targets.map((target) =>
        stage.needs.find((need) =>
          targets.includes(need) ? need === target && isSource(stage, need) : reaches(need, target)
        )
      )
      if (targets.length === 0 || via.includes(undefined)) return []
      const [first] = via
      const cause = first === targets[0] ? "an edge" : `${first}, which this stage needs,`
      const message = `${cause} already puts this stage after ${name}`
      return [finding("redundant-after", node.span, path, message, "remove it")]
    })
  )
}

const isSource = (stage: ResolvedStage, name: string): boolean =>
  Object.values(stage.inputs).some((edges) => edges.some((edge) => edge.stage === name))

const afterItems = (root: MappingNode, stage: string) => {
  const node = mapping(root, "stages", stage).get("after")?.value
  const path = `stages.${stage}.after`
  if (node === undefined) return []
  const items = node._tag === "sequence" ? node.items : [node]
  return items.map((node, index) => ({
    node,
    name: plainText(node),
    path: items.length > 1 ? `${path}[${index}]` : path
  }))
}

export const repeatedEdge: Rule = ({ pipeline, root }) =>
  writtenStages(pipeline).flatMap(([written]) =>
    Array.from(mapping(root, "stages", written, "in")).flatMap(([port, { value }]) => {
      if (value._tag !== "sequence") return []
      const seen = new Set<string>()
      return value.items.flatMap((item, index) => {
        const edge = plainText(item)
        if (!seen.has(edge)) {
          seen.add(edge)
          return []
        }
        const path = `stages.${written}.in.${port}[${index}]`
        return [finding("repeated-edge", item.span, path, `${edge} is in this list already`, "remove one of them")]
      })
    })
  )
