/** Rules about names: variables, axes, and what an override's path can reach. */
import { stageFields } from "../Overlay.ts"
import { finding, mapping, type Rule, textsIn, writtenStages } from "./Finding.ts"
import { nodeAt } from "../YamlSource.ts"

export const unusedVariable: Rule = ({ root }) => {
  const used = new Set(
    textsIn(root).flatMap((text) => Array.from(text.matchAll(/\$\{\s*vars\.([\w-]+)\s*\}/gu), (match) => match[1]))
  )
  return Array.from(mapping(root, "vars")).flatMap(([name, { key }]) =>
    used.has(name)
      ? []
      : [
          finding(
            "unused-variable",
            key,
            `vars.${name}`,
            "no value refers to this variable",
            `remove it, or write \${vars.${name}} where it is meant`
          )
        ]
  )
}

/** The first words of an override's path that are no stage. */
const reserved = ["vars", "defaults", "price", "secrets", "stages"]

export const shadowedName: Rule = ({ pipeline, root }) => {
  const next = "choose another name, or write the long path: -S stages.…"
  const stages = Array.from(mapping(root, "stages")).flatMap(([name, { key }]) =>
    reserved.includes(name)
      ? [
          finding(
            "shadowed-name",
            key,
            `stages.${name}`,
            `-S ${name}.… means the file's own ${name}, not this stage`,
            next
          )
        ]
      : []
  )
  const parameters = writtenStages(pipeline).flatMap(([written]) =>
    Array.from(mapping(root, "stages", written, "with")).flatMap(([name, { key }]) =>
      (stageFields as ReadonlyArray<string>).includes(name)
        ? [
            finding(
              "shadowed-name",
              key,
              `stages.${written}.with.${name}`,
              `-S ${written}.${name} means the stage's own ${name}, not this parameter`,
              `write the long path: -S ${written}.with.${name}`
            )
          ]
        : []
    )
  )
  const vars = mapping(root, "vars")
  const axes = writtenStages(pipeline).flatMap(([written]) =>
    Array.from(mapping(root, "stages", written, "matrix")).flatMap(([axis, { key }]) =>
      vars.has(axis)
        ? [
            finding(
              "shadowed-name",
              key,
              `stages.${written}.matrix.${axis}`,
              `\${vars.${axis}} and \${matrix.${axis}} are two values of one name`,
              "rename one of them"
            )
          ]
        : []
    )
  )
  return [...stages, ...parameters, ...axes]
}

export const unusedAxis: Rule = ({ pipeline, root }) =>
  writtenStages(pipeline).flatMap(([written]) => {
    const block = nodeAt(root, ["stages", written]).node
    const used = new Set(
      textsIn(block).flatMap((text) => Array.from(text.matchAll(/\$\{\s*matrix\.([\w-]+)\s*\}/gu), (match) => match[1]))
    )
    return Array.from(mapping(block, "matrix")).flatMap(([axis, { key }]) =>
      used.has(axis)
        ? []
        : [
            finding(
              "unused-axis",
              key,
              `stages.${written}.matrix.${axis}`,
              "nothing in the stage refers to this axis, so its instances are the same",
              `write \${matrix.${axis}} where the value belongs, or remove the axis`
            )
          ]
    )
  })
