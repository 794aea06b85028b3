// Pipelines that published tokenizers use, as changes to a trained tokenizer.json.

const byteLevel = (options = {}) => ({ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false, ...options });
const split = (pattern, behavior = 'Isolated', invert = false) => ({ type: 'Split', pattern, behavior, invert });
const sequence = (...pretokenizers) => ({ type: 'Sequence', pretokenizers });
const regex = (Regex) => ({ Regex });
const token = (id, content, flags = {}) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: false, ...flags });

const llama3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const gpt4o = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const deepseek = '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

// The first id behind the vocabulary and <|endoftext|>: Hugging Face numbers added tokens on from there.
const next = (j) => j.added_tokens[0].id + 1;

export const variants = {
    'GPT-2 (ByteLevel alone)': (j) => {
        j.normalizer = null;
        j.pre_tokenizer = byteLevel({ use_regex: true });
    },
    'prefix space': (j) => {
        j.pre_tokenizer = byteLevel({ use_regex: true, add_prefix_space: true });
    },
    'prefix space after a split': (j) => {
        j.pre_tokenizer = sequence(split(regex(llama3)), byteLevel({ add_prefix_space: true }));
    },
    'Llama 3, BOS by template, ignore_merges, merges as pairs': (j) => {
        j.normalizer = null;
        j.pre_tokenizer = sequence(split(regex(llama3)), byteLevel());
        j.model.ignore_merges = true;
        j.model.merges = j.model.merges.map((merge) => merge.split(' '));
        const id = next(j);
        j.added_tokens.push(token(id, '<|begin|>', { special: true }), token(id + 1, '<|eot|>', { special: true }));
        j.post_processor = {
            type: 'Sequence', processors: [byteLevel(), {
                type: 'TemplateProcessing',
                single: [{ SpecialToken: { id: '<|begin|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: '<|eot|>', type_id: 0 } }],
                pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
                special_tokens: {
                    '<|begin|>': { id: '<|begin|>', ids: [id], tokens: ['<|begin|>'] },
                    '<|eot|>': { id: '<|eot|>', ids: [id + 1], tokens: ['<|eot|>'] },
                },
            }],
        };
    },
    'GPT-4o': (j) => {
        j.pre_tokenizer = sequence(split(regex(gpt4o)), byteLevel());
    },
    'GPT-4o, matches kept': (j) => {
        j.pre_tokenizer = sequence(split(regex(gpt4o), 'Removed', true), byteLevel());
    },
    'DeepSeek': (j) => {
        j.normalizer = { type: 'Sequence', normalizers: [] };
        j.pre_tokenizer = sequence(split(regex('\\p{N}{1,3}')), split(regex('[一-龥\u3040-ゟ゠-ヿ]+')), split(regex(deepseek)), byteLevel());
    },
    'digits, strings, scripts': (j) => {
        j.pre_tokenizer = sequence({ type: 'Digits', individual_digits: true }, split({ String: '--' }, 'Removed'),
            split(regex('\\p{Han}+|\\p{Hiragana}+|\\p{Thai}?')), split(regex('\\w+|\\d+|[^\\w\\s]+')), byteLevel());
    },
    'digits together, lines': (j) => {
        j.pre_tokenizer = sequence({ type: 'Digits', individual_digits: false }, split(regex('^.|.$|\\n')), byteLevel());
    },
    'added tokens with flags': (j) => {
        const id = next(j);
        j.added_tokens.push(token(id, 'world', { single_word: true }), token(id + 1, '<think>', { lstrip: true }),
            token(id + 2, '</think>', { rstrip: true }), token(id + 3, '<|im_end|>', { lstrip: true, rstrip: true }),
            token(id + 4, '<|im_start|>', { normalized: true }), token(id + 5, '<|im_', {}), token(id + 6, 'e\u0301', { normalized: true }),
            token(id + 7, '世界', { single_word: true, lstrip: true, rstrip: true }), token(id + 8, '\n\n', {}), token(6, "'", { single_word: true }));
    },
};
