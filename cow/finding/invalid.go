package finding

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// ErrInvalid: the request itself makes no sense (a name, a size, options that exclude each other).
var ErrInvalid = errors.New("invalid request")

// invalid is an ErrInvalid with a message that does not repeat the sentinel's text.
type invalid struct{ msg string }

func (e *invalid) Error() string { return e.msg }
func (e *invalid) Unwrap() error { return ErrInvalid }

// Invalidf returns an ErrInvalid.
func Invalidf(format string, args ...any) error { return &invalid{fmt.Sprintf(format, args...)} }

// CheckPath refuses a path that JSON cannot represent: it would read back as another path. It is an
// ErrInvalid.
func CheckPath(what, path string) error {
	if utf8.ValidString(path) {
		return nil
	}
	return Invalidf("%s %s: expected a name in UTF-8, found other bytes, which the store's JSON documents cannot hold\n"+
		"give it another name, or name it through a symbolic link that has one", what,
		strconv.Quote(path))
}

// Bytes returns a size for a message.
func Bytes(n int64) string { return strconv.FormatInt(n, 10) + " bytes" }
