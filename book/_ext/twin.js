/* The twins of the testbed in plain arithmetic: a small GPT-2 and its tokenizer, for `playground.js`. Arrays of rows are flat;
   weights are (out, in), as _ext/playground.py writes them. Sums are taken in doubles and kept in floats. */
"use strict";
(() => {
  const EPSILON = 1e-5;

  /** Bytes of a text in base64. */
  const bytes = (text) => {
    const raw = atob(text), found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  };

  const floats = (text) => new Float32Array(bytes(text).buffer);

  // -- arithmetic -----------------------------------------------------------------------------------

  /** x Wᵀ + b of n rows; four rows share each weight that is read. */
  const linear = (x, n, weight, bias) => {
    const inner = x.length / n, outer = weight.length / inner, y = new Float32Array(n * outer);
    for (let row = 0; row < n; row += 4) {
      const b = Math.min(row + 1, n - 1), c = Math.min(row + 2, n - 1), d = Math.min(row + 3, n - 1);
      const at = row * inner, bt = b * inner, ct = c * inner, dt = d * inner;
      for (let o = 0; o < outer; o++) {
        const start = bias ? bias[o] : 0, from = o * inner;
        let p = start, q = start, r = start, s = start;
        for (let i = 0; i < inner; i++) {
          const w = weight[from + i];
          p += w * x[at + i];
          q += w * x[bt + i];
          r += w * x[ct + i];
          s += w * x[dt + i];
        }
        y[row * outer + o] = p;
        y[b * outer + o] = q;
        y[c * outer + o] = r;
        y[d * outer + o] = s;
      }
    }
    return y;
  };

  const normed = (x, n, weight, bias) => {
    const width = x.length / n, y = new Float32Array(x.length);
    for (let row = 0; row < x.length; row += width) {
      let mean = 0, square = 0;
      for (let i = 0; i < width; i++) mean += x[row + i] / width;
      for (let i = 0; i < width; i++) square += (x[row + i] - mean) ** 2 / width;
      const scale = 1 / Math.sqrt(square + EPSILON);
      for (let i = 0; i < width; i++) y[row + i] = (x[row + i] - mean) * scale * weight[i] + bias[i];
    }
    return y;
  };

  /** GPT-2's approximation of the GELU. */
  const gelu = (x) => x.map((u) => 0.5 * u * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (u + 0.044715 * u * u * u))));

  const added = (x, y) => x.map((u, i) => u + y[i]);

  const dot = (x, at, y, from, size) => {
    let sum = 0;
    for (let i = 0; i < size; i++) sum += x[at + i] * y[from + i];
    return sum;
  };

  /** Exponentials of numbers less their largest, their sum, and the logarithm of the sum of all exponentials. */
  const softened = (x) => {
    const parts = new Float64Array(x.length);
    let top = -Infinity, sum = 0;
    for (let i = 0; i < x.length; i++) top = Math.max(top, x[i]);
    for (let i = 0; i < x.length; i++) sum += parts[i] = Math.exp(x[i] - top);
    return { parts, sum, log: top + Math.log(sum) };
  };

  /** Causal attention over queries, keys and values that stand side by side in each of n rows. */
  const attended = (qkv, n, heads) => {
    const width = qkv.length / n / 3, size = width / heads, out = new Float32Array(n * width);
    for (let head = 0; head < heads; head++) {
      for (let row = 0; row < n; row++) {
        const query = 3 * row * width + head * size;
        const scores = Array.from({ length: row + 1 }, (_, past) =>
          dot(qkv, query, qkv, (3 * past + 1) * width + head * size, size) / Math.sqrt(size));
        const { parts, sum } = softened(scores);
        parts.forEach((part, past) => {
          const value = (3 * past + 2) * width + head * size, to = row * width + head * size;
          for (let i = 0; i < size; i++) out[to + i] += (part / sum) * qkv[value + i];
        });
      }
    }
    return out;
  };

  // -- the model ------------------------------------------------------------------------------------

  class Twin {
    /** From a file that _ext/playground.py wrote: of each float32 the three bytes that matter. */
    constructor({ heads, layers, tensors, data }) {
      this.heads = heads;
      this.layers = layers;
      const short = bytes(data), full = new Uint8Array((short.length / 3) * 4);
      for (let i = 0; i < short.length; i++) full[i + Math.floor(i / 3) + 1] = short[i];
      const all = new Float32Array(full.buffer);
      let at = 0;
      this.weights = Object.fromEntries(tensors.map(([name, size]) => [name, all.subarray(at, (at += size))]));
    }

    of(layer, name) { return this.weights[`h.${layer}.${name}`]; }
    linear(x, n, layer, name) { return linear(x, n, this.of(layer, `${name}.weight`), this.of(layer, `${name}.bias`)); }
    normed(x, n, layer, name) { return normed(x, n, this.of(layer, `${name}.weight`), this.of(layer, `${name}.bias`)); }

    /** One block; its MLP's keys, too. */
    block(x, n, layer) {
      const heard = attended(this.linear(this.normed(x, n, layer, "ln_1"), n, layer, "attn.c_attn"), n, this.heads);
      const middle = added(x, this.linear(heard, n, layer, "attn.c_proj"));
      const keys = gelu(this.linear(this.normed(middle, n, layer, "ln_2"), n, layer, "mlp.c_fc"));
      return { keys, out: added(middle, this.linear(keys, n, layer, "mlp.c_proj")) };
    }

    /** A text as far as the edited layer: what it puts out unedited, and the keys it meets. */
    read(ids, layer) {
      const { "wte.weight": words, "wpe.weight": places, "ln_f.bias": last } = this.weights;
      const n = ids.length, width = last.length;
      const word = (i) => words[ids[Math.floor(i / width)] * width + (i % width)];
      let found = { out: new Float32Array(n * width).map((_, i) => word(i) + places[i]) };
      for (let at = 0; at <= layer; at++) found = this.block(found.out, n, at);
      return { ids, n, layer, ...found };
    }

    /** What the last block makes of a text that was read, under an edit: `strength` times left rightᵀ in that layer's weight. */
    top(text, { left, right } = {}, strength = 0) {
      const { n } = text, inner = text.keys.length / n, width = text.out.length / n;
      let x = text.out;
      if (right && strength) {
        const gains = Array.from({ length: n }, (_, row) => strength * dot(text.keys, row * inner, right, 0, inner));
        x = x.map((u, i) => u + gains[Math.floor(i / width)] * left[i % width]);
      }
      for (let at = text.layer + 1; at < this.layers; at++) x = this.block(x, n, at).out;
      return normed(x, n, this.weights["ln_f.weight"], this.weights["ln_f.bias"]);
    }

    logits(x, n) { return linear(x, n, this.weights["wte.weight"], null); }

    /** Probabilities of the token after a text. */
    next(text, edit, strength) {
      const { parts, sum } = softened(this.logits(this.top(text, edit, strength).slice(text.out.length / text.n * -1), 1));
      return parts.map((part) => part / sum);
    }

    /** Perplexity of a text, its first token not scored. */
    perplexity(text, edit, strength) {
      const { n, ids } = text, all = this.logits(this.top(text, edit, strength), n), size = all.length / n;
      let loss = 0;
      for (let row = 0; row < n - 1; row++) {
        const logits = all.subarray(row * size, (row + 1) * size);
        loss += softened(logits).log - logits[ids[row + 1]];
      }
      return Math.exp(loss / (n - 1));
    }
  }

  // -- the tokenizer --------------------------------------------------------------------------------

  const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

  /** The character that stands for each byte in a byte-level vocabulary, as in GPT-2. */
  const ALPHABET = (() => {
    const plain = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    let spare = 256;
    return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(plain(byte) ? byte : spare++));
  })();

  /** Byte-pair encoding; ids are the end of a text, the alphabet in order, then the merges in order. */
  class Tokenizer {
    constructor(merges) {
      this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
      this.words = ["", ...ALPHABET.toSorted(), ...merges.map((pair) => pair.replace(" ", ""))];
      this.ids = new Map(this.words.map((word, id) => [word, id]));
    }

    encode(text) { return (text.match(WORDS) ?? []).flatMap((word) => this.pieces(word).map((piece) => this.ids.get(piece))); }

    pieces(word) {
      const parts = Array.from(new TextEncoder().encode(word), (byte) => ALPHABET[byte]);
      for (;;) {
        const ranks = parts.slice(1).map((part, i) => this.ranks.get(`${parts[i]} ${part}`) ?? Infinity);
        const least = Math.min(...ranks);
        if (least === Infinity) return parts;
        const at = ranks.indexOf(least);
        parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
    }

    decode(ids) {
      const signs = ids.map((id) => this.words[id]).join("");
      return new TextDecoder().decode(Uint8Array.from(signs, (sign) => ALPHABET.indexOf(sign)));
    }
  }

  globalThis.editlibTwin = { Twin, Tokenizer, floats };
})();
