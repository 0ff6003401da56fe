/** Checks edges against stages and port types, finds cycles, and puts stages in topological order. */
import { type Diagnostic, didYouMean } from "./Diagnostics.ts"
import type { WrittenEdge } from "./StageBlock.ts"
import type { AnyStageType } from "../StageType.ts"
import { diagnose, type Span } from "./YamlSource.ts"

/** A stage as far as the graph needs it. `type` is undefined where `uses` is faulty: its ports are not judged then. */
export interface GraphStage {
  readonly name: string
  readonly span: Span
  readonly type: AnyStageType | undefined
  readonly inputs: Readonly<Record<string, ReadonlyArray<WrittenEdge>>>
  readonly after: ReadonlyArray<{ readonly stage: string; readonly span: Span; readonly path: string }>
}

export const checkEdges = (stages: ReadonlyMap<string, GraphStage>, report: Array<Diagnostic>): void => {
  const names = Array.from(stages.keys())
  for (const stage of stages.values()) {
    for (const [port, edges] of Object.entries(stage.inputs)) {
      const wanted = stage.type?.inputs[port]?.type
      for (const edge of edges) checkEdge(stages, names, edge, wanted, report)
    }
    for (const { path, span, stage: name } of stage.after) {
      if (stages.has(name)) continue
      report.push(diagnose(span, path, `no stage "${name}"`, { suggestion: didYouMean(name, names) }))
    }
  }
}

const checkEdge = (
  stages: ReadonlyMap<string, GraphStage>,
  names: ReadonlyArray<string>,
  edge: WrittenEdge,
  wanted: string | undefined,
  report: Array<Diagnostic>
): void => {
  const fail = (message: string, suggestion: string | undefined) =>
    report.push(diagnose(edge.span, edge.path, message, { suggestion }))
  const source = stages.get(edge.stage)
  if (source === undefined) {
    const meant = didYouMean(edge.stage, names)
    fail(`no stage "${edge.stage}"`, meant === undefined ? undefined : `${meant}.${edge.port}`)
    return
  }
  if (source.type === undefined) return
  const outputs = Object.keys(source.type.outputs)
  const given = source.type.outputs[edge.port]?.type
  if (given === undefined) {
    const meant = didYouMean(edge.port, outputs)
    const message = `${edge.stage} (${source.type.name}) has no output port "${edge.port}"; it has ${outputs.join(", ")}`
    fail(message, meant === undefined ? undefined : `${edge.stage}.${meant}`)
    return
  }
  if (wanted === undefined || given === wanted) return
  const fitting = Array.from(stages.values()).flatMap((stage) =>
    Object.entries(stage.type?.outputs ?? {}).flatMap(([port, { type }]) =>
      type === wanted ? [`${stage.name}.${port}`] : []
    )
  )
  const hint = fitting.length === 0 ? "no stage here makes one" : `${wanted} comes from ${fitting.join(", ")}`
  fail(`takes ${wanted}, but ${edge.stage}.${edge.port} gives ${given}; ${hint}`, undefined)
}

/** Depth first in the file's order, so independent stages keep it. A cycle is reported once, with its path. */
export const topologicalOrder = (
  stages: ReadonlyMap<string, GraphStage>,
  report: Array<Diagnostic>
): ReadonlyArray<string> => {
  const order: Array<string> = []
  const state = new Map<string, "open" | "done">()
  const trail: Array<string> = []
  const visit = (stage: GraphStage): void => {
    state.set(stage.name, "open")
    trail.push(stage.name)
    for (const edge of edgesOf(stage)) {
      const needed = stages.get(edge.stage)
      if (needed === undefined) continue
      const seen = state.get(edge.stage)
      if (seen === undefined) visit(needed)
      else if (seen === "open") {
        // The trail runs against the edges; read backwards it says what feeds what.
        const cycle = [edge.stage, ...trail.slice(trail.indexOf(edge.stage)).toReversed()]
        report.push(diagnose(edge.span, edge.path, `a cycle: ${cycle.join(" → ")}`))
      }
    }
    trail.pop()
    state.set(stage.name, "done")
    order.push(stage.name)
  }
  for (const stage of stages.values()) if (!state.has(stage.name)) visit(stage)
  return order
}

const edgesOf = (stage: GraphStage) => [...Object.values(stage.inputs).flat(), ...stage.after]
