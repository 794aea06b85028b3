// The strings on which engines are compared: many scripts, emoji, marks, white space, numbers, code, added tokens, every
// assigned code point, and seeded mixtures. Deterministic.

const words = [
    'Hello, world!', "I'm sure they'll say we've DON'T'VE it'S 'S 'T 'RE 'LL 'd", "'\u017f 'l\u017f \u212aelvin",
    'Größe, Öl, naïve café, ÅNGSTRÖM \u212b \u2126', 'Привет, мир! Ёлка съешь ещё', 'Γειά σου Κόσμε, ΐΰ ᾳ', 'שלום עולם שָׁלוֹם', 'مرحبا بالعالم ۱۲۳ ٤٥٦ لَا',
    'नमस्ते दुनिया क्षि ड़ ढ़ क़', 'হ্যালো বিশ্ব ড় ো', 'ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ', 'હેલો', 'ଓଡ଼ିଆ', 'வணக்கம் உலகம் ொ', 'హలో', 'ಹಲೋ ೋ', 'ഹലോ ൊ', 'ආයුබෝවන් ෝ', 'สวัสดีชาวโลก ํา', 'ສະບາຍດີ',
    'བཀྲ་ཤིས་ གྷ ཱི', 'မင်္ဂလာပါ ဦ', 'ሰላም ልዑል', 'សួស្តី​ពិភពលោក', 'ᠮᠣᠩᠭᠣᠯ\u180e', '你好,世界。中文分词测试', '繁體中文測試 \uf900 \u2f800'.replace('\u2f800', '\u{2f800}'),
    'こんにちは世界 カタカナ ガギグ か\u3099き\u3099 ｶﾞ', '안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af 각\u11a8 가\u11a8', 'ᏣᎳᎩ ꮳ', 'Հայերեն և', 'ქართული ᲥᲐᲠᲗ', 'ᚠᚢᚦ ⵜⵉⴼ', '𐍈𐌰 𝔘𝔫𝔦 𝟘𝟙𝟚 𝐀𝐁',
    '👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 1️⃣ #️⃣ ❤️ 🧑🏿‍🚀 ☃️', 'e\u0301 e\u0323\u0301 e\u0301\u0323 o\u0302\u0323\u0301 \u1e69 s\u0323\u0307 s\u0307\u0323', 'Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘',
    '  two  spaces   three    four', 'tab\ttab\t\ttab', 'a\nb\n\nc\n\n\nd', 'a\r\nb\r\n\r\nc\r\rd', ' \n \n  \n\t\n x', 'end   ', '\n', '\r\n', '   ', '\t', '\u00a0\u00a0x\u3000y\u2003z\u2028l\u2029p\u0085n\u000bv\u000cf',
    '\u200b\u200c\u200d\ufeff\u2060zero', '0 1 12 123 1234 12345 123456.789 1,000,000 3.14e-10 0xFF ½ ² Ⅷ ٣ ३ ①②', 'x²+y²=z² ∑∫∂ ≤≥≠ → ⇒ ∞ αβγ',
    'def f(x: int) -> str:\n    return f"{x!r:>{10}}"  # comment\n\n\nclass A(B):\n\tpass\n', '#include <stdio.h>\nint main(void) { return (a->b[3] << 2) & ~0xFFu; }\n',
    '<div class="a">&nbsp;</div>\n<!-- c -->\n', 'SELECT * FROM `t` WHERE a <> \'b\' AND c >= 1;', '{"k": [1, 2.5, null, true], "s": "\\u00e9\\n"}', 'https://example.org/path?q=1&r=%20#frag user@example.org',
    '$100 €200 £300 ¥400 ₿1', '...!!!???---___***', '“quotes” ‘single’ «guillemets» – — …', 'camelCaseSnake_case_UPPER kebab-case', "rock 'n' roll o'clock", '\u0000\u0001\u001f\u007f\u0080\u009f', '\ufffd \ufffe \uffff \u{10ffff}', '',
    'a', ' a', 'a ', ' ', 'ß ẞ ﬁ ﬂ ﬆ ŉ ǆ', '\u0344 \u0340 \u0374 \u037e \u0387 \u1fef \u2000 \u2001 \u2329', '\u0958 \u09dc \u0a33 \u0b5c \u0f43 \ufb1d \ufb2a',
];
const added = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<tool_call>', '</tool_call>', '<think>', '</think>', '<|fim_prefix|>', '<|image_pad|>', '<|file_sep|>'];
const near = ['<|endoftext', '|endoftext|>', '<|im_start|', '<<|im_end|>>', '<|im_<|im_end|>', '< |im_end|>', '<THINK>', '<thin', '<|<|<|'];

function generator(seed) {
    let state = seed >>> 0;
    return (n) => {
        state = (state + 0x9e3779b9) >>> 0;
        let z = state;
        z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
        z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
        return ((z ^ (z >>> 16)) >>> 0) % n;
    };
}

export function makeStrings() {
    const out = [...words, ...added, ...near];
    for (const token of added) out.push(`user${token}assistant`, ` ${token} `, `${token}${token}\n${token}`, `e${token}\u0301`, `don't${token}'t`);
    const random = generator(20260101);
    const pick = (list) => list[random(list.length)];
    const glue = ['', ' ', '  ', '\n', '\r\n', '\t', '\u00a0', "'", '\u0301', '\u200d', '7', '.'];
    for (let i = 0; i < 900; i++) {
        let text = '';
        for (let k = 1 + random(6); k > 0; k--) text += pick(random(8) ? words : [...added, ...near]) + pick(glue);
        out.push(text);
    }
    // Single characters of everything, mixed.
    const pool = [...new Set(words.join('') + ' \n\r\t')];
    for (let i = 0; i < 700; i++) {
        let text = '';
        for (let k = 1 + random(40); k > 0; k--) text += pick(pool);
        out.push(text);
    }
    for (let i = 0; i < 200; i++) out.push(pick([' ', '\n', '\r\n', 'a', '1', '.', '中', '\u0301', '👍', '\t ', ' \n']).repeat(1 + random(300)) + pick(words));
    // Every assigned code point, once in order and once after a letter; the last two planes (private use) once.
    const assigned = [];
    for (let c = 0; c <= 0xeffff; c++)
        if ((c < 0xd800 || c > 0xdfff) && !/\p{Cn}/u.test(String.fromCodePoint(c))) assigned.push(String.fromCodePoint(c));
    for (let i = 0; i < assigned.length; i += 64) out.push(assigned.slice(i, i + 64).join(''));
    for (let i = 0; i < assigned.length; i += 128) out.push(assigned.slice(i, i + 128).map((c) => 'x' + c).join(' '));
    const inPrivatePlanes = Array.from({ length: 0x20000 }, (_, i) => String.fromCodePoint(0xf0000 + i)).filter((c) => !/\p{Cn}/u.test(c));
    for (let i = 0; i < inPrivatePlanes.length; i += 1024) out.push(inPrivatePlanes.slice(i, i + 1024).join(''));
    return { strings: out, nAssigned: assigned.length + inPrivatePlanes.length };
}

/** Bytes that are not UTF-8: every kind of wrong sequence, alone, between letters, and cut out of valid text. */
export function makeByteStrings() {
    const wrong = ['80', 'bf', 'c0', 'c080', 'c1bf', 'c2', 'c241', 'e0', 'e080', 'e0a0', 'e0a041', 'e09f80', 'ed', 'eda080', 'edbfbf', 'ed9f', 'ef', 'efbf', 'f0', 'f080', 'f08080', 'f0808080',
        'f09080', 'f0908041', 'f48f', 'f48fbf', 'f4908080', 'f5808080', 'f8888080', 'fe', 'ff', 'fffe', 'c3c3a9', 'e4b8e4b8ad', 'f09f91f09f918d', 'ffffff20ff'];
    const out = [];
    for (const hex of wrong) for (const [before, after] of [['', ''], ['a', 'b'], [' x ', ' y'], ['\u00e9', '\u4e2d'], ['\n', '\u0301']]) out.push(Buffer.concat([Buffer.from(before), Buffer.from(hex, 'hex'), Buffer.from(after)]));
    const random = generator(7);
    const text = Buffer.from(words.join(' '));
    for (let i = 0; i < 200; i++) {
        const from = random(text.length);
        const piece = Buffer.from(text.subarray(from, from + 1 + random(60)));
        piece[random(piece.length)] = random(256);
        out.push(piece);
    }
    for (let i = 0; i < 100; i++) out.push(Buffer.from(Array.from({ length: 1 + random(40) }, () => random(256))));
    return out;
}
