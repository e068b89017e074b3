// Run a pipeline of transformers.js on each input and print the answers as JSON.
const { pipeline } = require("@huggingface/transformers");

const { task, folder, inputs, options } = JSON.parse(process.argv[2]);
const { call, ...loading } = options;

(async () => {
  const run = await pipeline(task, folder, loading);
  const answers = [];
  for (const input of inputs) answers.push(await run(...input, call));
  console.log(JSON.stringify(answers));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
