// npm run docs:page: writes docs/images/page.png, a screenshot of the `diad serve` page with scored example
// images.
import { existsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { chromium } from 'playwright-core';
import { root, setUp } from './setup.mjs';
import { programPath } from './system-packages.mjs';

const EXAMPLES = ['cable-misplaced_part.png', 'gear-good.png'];
const VIEWPORT = { width: 1100, height: 740 };

async function main() {
  setUp();
  const executablePath = process.env.DIAD_CHROMIUM ?? programPath('chromium');
  if (executablePath === undefined || !existsSync(executablePath)) {
    throw new Error('Chromium not found: add it to PATH or set DIAD_CHROMIUM');
  }
  const { Diad } = await import('../dist/index.js');
  const { createServer } = await import('../dist/server/index.js');
  const server = await createServer({ load: () => Diad.load(), port: 0, logLevel: 'error' });
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  try {
    await server.ready;
    const page = await browser.newPage({ viewport: VIEWPORT, colorScheme: 'light' });
    await page.goto(server.url);
    // Add one image at a time, because the page shows the newest first.
    for (const [i, name] of EXAMPLES.toReversed().entries()) {
      await page.locator('input[type=file]').setInputFiles(path.join(root, 'examples', name));
      await page
        .getByRole('status')
        .filter({ hasText: new RegExp(`(?<!of )${i + 1} scored`) })
        .waitFor({ timeout: 60_000 });
    }
    const file = path.join(root, 'docs', 'images', 'page.png');
    await page.screenshot({ path: file });
    process.stdout.write(`${path.relative(process.cwd(), file)}\n`);
  } finally {
    await browser.close();
    await server.close();
  }
}

try {
  await main();
} catch (error) {
  process.stderr.write(`page-image: ${error.message}\n`);
  process.exitCode = 1;
}
