// Mocha's spec reporter that also writes {passes, failures} to a file (reporter option "output").
const { writeFileSync } = require('node:fs');
const { reporters } = require('mocha');

module.exports = class SpecWithCounts extends reporters.Spec {
  constructor(runner, options) {
    super(runner, options);
    const { output } = options.reporterOptions ?? {};
    runner.once('end', () => {
      if (output) writeFileSync(output, JSON.stringify({ passes: this.stats.passes, failures: this.stats.failures }));
    });
  }
};
