// Open the page of a demo in headless Chromium, type a text, wait for its answer, take screenshots, print what is shown.
const puppeteer = require("puppeteer-core");

const { chromium, url, text, folder } = JSON.parse(process.argv[2]);
const sizes = { desktop: [1280, 900], phone: [390, 844] };

(async () => {
  const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
  const page = await browser.newPage();
  const problems = [];
  const requests = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("requestfailed", (request) => problems.push(`${request.url()} ${request.failure().errorText}`));
  page.on("request", (request) => requests.push(request.url()));
  const answer = () =>
    page.$$eval("#answer li", (lines) => lines.map((line) => [line.children[0].textContent, line.children[2].value]));
  const shown = (selector) => page.$eval(selector, (element) => element.textContent);
  const result = { overflow: [] };
  await page.setViewport({ width: sizes.desktop[0], height: sizes.desktop[1] });
  await page.goto(url);
  await page.waitForFunction(() => !/Loading/.test(document.getElementById("status").textContent), { timeout: 120000 });
  result.status = await shown("#status");
  if (!/Ready/.test(result.status)) throw new Error(`${result.status} ${problems}`);
  await page.keyboard.type(text); // the box has the focus
  await page.waitForSelector("#answer li", { timeout: 60000 });
  await new Promise((wait) => setTimeout(wait, 1000));
  result.answer = await answer();
  result.milliseconds = Number(await shown("#milliseconds"));
  result.megabytes = Number(await shown("#megabytes"));
  result.figures = await page.$$eval("#figures tr", (rows) => rows.length);
  for (const [name, [width, height]] of Object.entries(sizes)) {
    await page.setViewport({ width, height });
    await page.screenshot({ path: `${folder}/${name}.png` });
    result.overflow.push(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth));
  }
  console.log(JSON.stringify({ ...result, problems, requests }));
  await browser.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
