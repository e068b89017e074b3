// The milliseconds of a model of transformers.js, in Node and in a browser: each case is a batch of texts of one length.
async function measure({ AutoModelForSequenceClassification, AutoTokenizer }, settings) {
  const { folder, cases, calls, ...loading } = settings;
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  const model = await AutoModelForSequenceClassification.from_pretrained(folder, loading);
  const results = [];
  for (const { texts, repeats } of cases) {
    const inputs = await tokenizer(texts, { padding: true });
    await model(inputs);
    await model(inputs);
    const alone = [];
    const together = [];
    for (let call = 0; call < (repeats ?? calls); call++) {
      let start = performance.now();
      await model(inputs);
      alone.push(performance.now() - start);
      start = performance.now();
      await model(await tokenizer(texts, { padding: true }));
      together.push(performance.now() - start);
    }
    results.push({ length: inputs.input_ids.dims[1], alone, together });
  }
  return results;
}

globalThis.measure = measure;
