package control

import "errors"

// maxDepth bounds the nesting of a text. Commands need a few levels.
const maxDepth = 64

// Errors of the splitter. errTooLong ends the stream; after the others it continues after the next
// newline.
var (
	errTooLong = errors.New("JSON parse error, text longer than 64 KiB")
	errTooDeep = errors.New("JSON parse error, text nested too deep")
	errGarbage = errors.New("JSON parse error, expected an object")
	errNewline = errors.New("JSON parse error, newline in a string")
)

// splitter splits a byte stream into JSON texts by counting brackets outside strings, as QEMU's
// json-streamer does. A text ends at its last bracket, not at a newline. Other errors are left to
// the parser. The byte 0xFF, which JSON cannot contain, drops incomplete input (qmp-spec, "Session
// re-synchronization").
type splitter struct {
	text     []byte // the text so far, empty between texts
	depth    int    // open brackets
	inString bool
	escaped  bool // after a backslash in a string
	skipping bool // until the newline after an error
}

// scan consumes p up to the end of a text, an error or the end of p, and returns the number of
// bytes consumed. If done, s.text is a complete text, valid until the next call.
func (s *splitter) scan(p []byte) (n int, done bool, err error) {
	if s.depth == 0 {
		s.text = s.text[:0]
	}
	for i, b := range p {
		switch {
		case b == 0xff:
			s.reset()
		case s.skipping:
			s.skipping = b != '\n'
		case s.depth == 0:
			switch b {
			case ' ', '\t', '\r', '\n':
			case '{', '[':
				s.text = append(s.text, b)
				s.depth = 1
			default:
				return i + 1, false, s.fail(errGarbage)
			}
		case len(s.text) >= maxText:
			return i + 1, false, s.fail(errTooLong)
		default:
			s.text = append(s.text, b)
			switch {
			case s.escaped:
				s.escaped = false
			case s.inString:
				switch b {
				case '\\':
					s.escaped = true
				case '"':
					s.inString = false
				case '\n':
					s.reset() // the stream continues after this newline
					return i + 1, false, errNewline
				}
			case b == '"':
				s.inString = true
			case b == '{' || b == '[':
				if s.depth++; s.depth > maxDepth {
					return i + 1, false, s.fail(errTooDeep)
				}
			case b == '}' || b == ']':
				if s.depth--; s.depth == 0 {
					return i + 1, true, nil
				}
			}
		}
	}
	return len(p), false, nil
}

// fail drops the text and skips to the next newline.
func (s *splitter) fail(err error) error {
	s.reset()
	s.skipping = true
	return err
}

func (s *splitter) reset() { *s = splitter{text: s.text[:0]} }
