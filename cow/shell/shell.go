// Package shell writes words for a POSIX shell: what a message advises to type can be pasted as it is, whatever is in
// the paths and names in it.
package shell

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain are the characters besides letters and digits of ASCII that no shell changes, wherever they stand in a word.
const plain = "_-./,:@%+"

// Word returns s as one word: as it is if no shell would change it, else in single quotes (POSIX.1-2017, XCU 2.2.2).
// What a terminal would not show, control characters and bytes that are not UTF-8, is written as a printf(1) with
// octal escapes, so that the word keeps its meaning through a terminal and a log.
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

// endOfLines is a word of the newlines in s, which has nothing else. A command substitution drops them at its end, and as
// they are they would not outlive a message's indentation: IFS holds one, after a space and a tabulator (XCU 2.5.3).
func endOfLines(s string) string {
	if s == "" {
		return "''"
	}
	return `"` + strings.Repeat("${IFS#??}", len(s)) + `"`
}

// Path is Word for the name of a file: one that begins with a dash does not look like an option.
func Path(s string) string {
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	return Word(s)
}

// Line joins words, each quoted, into a command line.
func Line(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Word(w)
	}
	return strings.Join(quoted, " ")
}

func isPlain(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(plain, c) && c != '=' {
			return false
		}
	}
	return s != "" && s[0] != '=' // zsh replaces a leading =
}

// Shown reports whether a terminal shows s as it is.
func Shown(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) < 0
}

// octal is s as the format of printf(1), in single quotes.
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
