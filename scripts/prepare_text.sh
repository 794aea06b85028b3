#!/usr/bin/env bash
# Real text for the debug run: the King James Bible (public domain) from the Debian packages bible-kjv and bible-kjv-text,
# a chapter a document, as JSON lines; and a tokenizer of 2048 tokens trained on it. Done once: later calls return at once.
#   assets/text/kjv_train.jsonl   1,150 chapters
#   assets/text/kjv_valid.jsonl   39 chapters (every 30th) that training never sees
#   assets/tokenizer/tokenizer.json
# usage: scripts/prepare_text.sh EXPAR_BINARY
set -euo pipefail
cd "$(dirname "$0")/.."
expar=${1:?usage: scripts/prepare_text.sh EXPAR_BINARY}

text=assets/text tokenizer=assets/tokenizer
if [ ! -s $text/kjv_valid.jsonl ]; then
    missing=()
    command -v bible >/dev/null || missing+=(bible-kjv)
    [ -e /usr/lib/bible.data ] || missing+=(bible-kjv-text)
    [ ${#missing[@]} -eq 0 ] || scripts/apt_install.sh "${missing[@]}"
    echo "preparing the text: King James Bible, a chapter a document"
    mkdir -p $text
    bible -f gen1:1-rev22:21 | awk -v train=$text/kjv_train.jsonl.tmp -v valid=$text/kjv_valid.jsonl.tmp '
        BEGIN {
            n_books = split("Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|1 Samuel|2 Samuel|1 Kings|" \
                "2 Kings|1 Chronicles|2 Chronicles|Ezra|Nehemiah|Esther|Job|Psalm|Proverbs|Ecclesiastes|Song of Solomon|" \
                "Isaiah|Jeremiah|Lamentations|Ezekiel|Daniel|Hosea|Joel|Amos|Obadiah|Jonah|Micah|Nahum|Habakkuk|" \
                "Zephaniah|Haggai|Zechariah|Malachi|Matthew|Mark|Luke|John|Acts|Romans|1 Corinthians|2 Corinthians|" \
                "Galatians|Ephesians|Philippians|Colossians|1 Thessalonians|2 Thessalonians|1 Timothy|2 Timothy|Titus|" \
                "Philemon|Hebrews|James|1 Peter|2 Peter|1 John|2 John|3 John|Jude|Revelation", books, "|")
        }
        function flush() {
            if (text == "") return
            print "{\"text\": \"" text "\"}" > (n_chapters++ % 30 == 29 ? valid : train)
            text = ""
        }
        match($1, /^[1-3]?[A-Za-z]+/) {
            book = substr($1, 1, RLENGTH)
            split(substr($1, RLENGTH + 1), place, ":")
            if (book != last_book) { b++; last_book = book; chapter = "" }
            if (place[1] != chapter) {
                flush()
                chapter = place[1]
                text = books[b] " " chapter "\\n"
            }
            verse = substr($0, length($1) + 2)
            gsub(/\\/, "\\\\", verse); gsub(/"/, "\\\"", verse)
            text = text "\\n" verse
        }
        END {
            flush()
            if (b != n_books || n_chapters != 1189) {
                print "error: the bible command gave " b " books and " n_chapters " chapters, not 66 and 1189" > "/dev/stderr"
                exit 1
            }
        }'
    mv $text/kjv_train.jsonl.tmp $text/kjv_train.jsonl
    mv $text/kjv_valid.jsonl.tmp $text/kjv_valid.jsonl
fi
if [ ! -s $tokenizer/tokenizer.json ]; then
    echo "training a tokenizer of 2048 tokens on it"
    "$expar" tokenizer-train $text/kjv_train.jsonl --vocab 2048 --out $tokenizer >/dev/null
fi
