// An ES module that uses the installed package: scores the image given on the command line.
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { Diad } from 'diad';

const diad = await Diad.load();
const { score } = await diad.score(await readFile(process.argv[2]));
const { libtorch } = diad.info;
await diad.close();
process.stdout.write(`${JSON.stringify({ score, node: process.versions.node, source: libtorch.source })}\n`);
