// A CommonJS module that loads the installed package with require().
const { readFileSync } = require('node:fs');
const process = require('node:process');
const { Diad } = require('diad');

Diad.load().then(async (diad) => {
  const { score } = await diad.score(readFileSync(process.argv[2]));
  const { libtorch } = diad.info;
  await diad.close();
  process.stdout.write(
    `${JSON.stringify({ score, node: process.versions.node, source: libtorch.source })}\n`,
  );
});
