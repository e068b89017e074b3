// Measure in Node, or with `url` in headless Chromium, and print JSON. NODE_PATH names the folder of the packages.
require("./latency_measure.js");

const { chromium, url, threads, ...settings } = JSON.parse(process.argv[2]);

async function inNode() {
  const transformers = require("@huggingface/transformers");
  return measure(transformers, { ...settings, session_options: { intraOpNumThreads: threads } });
}

async function inBrowser() {
  const puppeteer = require("puppeteer-core");
  const browser = await puppeteer.launch({
    executablePath: chromium,
    args: ["--no-sandbox", "--disable-gpu"],
    protocolTimeout: 600000,
  });
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForFunction("window.ready");
  const results = await page.evaluate((given) => window.run(given), { ...settings, threads });
  await browser.close();
  return results;
}

(url ? inBrowser() : inNode())
  .then((results) => console.log(JSON.stringify(results)))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
