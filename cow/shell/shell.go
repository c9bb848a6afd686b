package shell

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain are the ASCII characters, besides letters and digits, that no shell changes anywhere in a
// word.
const plain = "_-./,:@%+"

// Word returns s as one word: unchanged if no shell would change it, else in single quotes
// (POSIX.1-2017, XCU 2.2.2). Control characters and bytes that are not UTF-8, which a terminal
// would not show, are written as a printf(1) with octal escapes, so that the word keeps its meaning
// through a terminal and a log.
func Word(s string) string {
	if isPlain(s) {
		return s
	}
	body := strings.TrimRight(s, "\n")
	tail := s[len(body):]
	var word string
	switch {
	case body == "":
	case Shown(body):
		word = "'" + strings.ReplaceAll(body, "'", `'\''`) + "'"
	default:
		word = `"$(printf '` + octal(body) + `')"`
	}
	if tail != "" || word == "" {
		word += endOfLines(tail)
	}
	return word
}

// endOfLines returns a word for s, which is newlines only. A command substitution drops them at its
// end, and a plain newline would not survive a message's indentation: IFS holds one, after a space
// and a tab (XCU 2.5.3).
func endOfLines(s string) string {
	if s == "" {
		return "''"
	}
	return `"` + strings.Repeat("${IFS#??}", len(s)) + `"`
}

// Path is Word for a file name: a leading dash is protected from being read as an option.
func Path(s string) string {
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	return Word(s)
}

// Line quotes words and joins them to a command line.
func Line(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Word(w)
	}
	return strings.Join(quoted, " ")
}

func isPlain(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') &&
			!strings.ContainsRune(plain, c) && c != '=' {
			return false
		}
	}
	return s != "" && s[0] != '=' // zsh replaces a leading =
}

// Shown reports whether a terminal shows s unchanged.
func Shown(s string) bool {
	return utf8.ValidString(s) &&
		strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) < 0
}

// Text returns a path for a message, quoted if a terminal would not show it unchanged.
func Text(path string) string {
	if Shown(path) {
		return path
	}
	return strconv.Quote(path)
}

// octal returns s as a format of printf(1), for single quotes.
func octal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		c, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case c == '%':
			b.WriteString("%%")
		case c == '\\':
			b.WriteString(`\\`)
		case c == utf8.RuneError && n == 1, !unicode.IsPrint(c), c == '\'', i == 0 && c == '-':
			for _, raw := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\%03o`, raw)
			}
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}
