// Opens pages in headless Chromium.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import { chromium, type Page } from 'playwright-core';

const PLACES = [
  process.env['DIAD_CHROMIUM'],
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
];

/** Opens a file as a page and asserts that it made no request and raised no error. */
export async function withPage<T>(file: string, use: (page: Page) => Promise<T>): Promise<T> {
  const executablePath = PLACES.find((place) => place !== undefined && existsSync(place));
  assert.ok(
    executablePath !== undefined,
    'Chromium is not installed: run `npm test`, which installs it, or set DIAD_CHROMIUM',
  );
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    const url = pathToFileURL(file).href;
    const complaints: string[] = [];
    page.on('request', (request) => {
      if (request.url() !== url && !request.url().startsWith('data:'))
        complaints.push(`request ${request.url()}`);
    });
    page.on('pageerror', (error) => complaints.push(`error ${error.message}`));
    page.on('console', (message) => complaints.push(`console ${message.text()}`));
    await page.goto(url);
    const result = await use(page);
    assert.deepEqual(complaints, []);
    return result;
  } finally {
    await browser.close();
  }
}
