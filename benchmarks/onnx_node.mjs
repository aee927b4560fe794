// Image files through an onnx-uint8 export in JavaScript; benchmarks/export_table.py runs it.
//
//   node onnx_node.mjs MODEL.onnx < paths.txt > answers.jsonl      (npm install onnxruntime-node sharp)
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";
import sharp from "sharp";

const session = await ort.InferenceSession.create(process.argv[2]);
for (const path of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const { data, info } = await sharp(path, { ignoreIcc: true }).toColourspace("srgb").removeAlpha().raw().toBuffer({ resolveWithObject: true });
  const image = new ort.Tensor("uint8", data, [info.height, info.width, 3]);
  const { probabilities } = await session.run({ image });
  console.log(JSON.stringify({ path, probabilities: Array.from(probabilities.data) }));
}
