// Medians and spreads.

export const median = (numbers) => {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

export const spread = (numbers) => ({
  median: median(numbers),
  min: Math.min(...numbers),
  max: Math.max(...numbers),
  n: numbers.length,
});

/** The value below which `share` of the numbers lie. */
export const percentile = (numbers, share) =>
  [...numbers].sort((a, b) => a - b)[Math.floor(share * (numbers.length - 1))];
