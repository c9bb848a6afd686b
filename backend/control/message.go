package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"cowblk/backend/qmp/link"
)

// maxText bounds one JSON text in either direction, in bytes, including its newline. go-qemu reads
// replies with a bufio.Scanner, whose limit is 64 KiB.
const maxText = 64<<10 - 2

// Error classes of the dialect (QEMU's QapiErrorClass). GenericError is for all errors that clients
// need not distinguish.
const (
	GenericError    = "GenericError"
	CommandNotFound = "CommandNotFound"
	DeviceNotFound  = "DeviceNotFound"
	DeviceNotActive = "DeviceNotActive"
)

// Error is the error of a command as sent over the socket. A handler returns an *Error to choose
// the class; other errors become a GenericError with their text.
type Error = link.Error

// errorf returns a GenericError.
func errorf(format string, args ...any) *Error {
	return &Error{Class: GenericError, Desc: truncate(fmt.Sprintf(format, args...), maxDesc)}
}

func notFound(desc string) *Error { return &Error{Class: CommandNotFound, Desc: desc} }

// maxDesc bounds an error's description, in bytes.
const maxDesc = 1024

// asError converts err to its form on the wire. The description is never empty, because go-qemu
// takes an empty one for success.
func asError(err error) *Error {
	out := &Error{Class: GenericError, Desc: truncate(err.Error(), maxDesc)}
	var e *Error
	if errors.As(err, &e) {
		out.Class = e.Class
	}
	if out.Class == "" {
		out.Class = GenericError
	}
	if out.Desc == "" {
		out.Desc = "unknown error"
	}
	return out
}

// Version is the daemon's version in the greeting and in query-version. On the wire the numbers are
// where QEMU has its own, so that QMP clients can print them.
type Version struct {
	Major, Minor, Micro int
	Package             string // free text, such as "cowblk"
}

// MarshalJSON returns QEMU's VersionInfo.
func (v Version) MarshalJSON() ([]byte, error) {
	var w struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	}
	w.QEMU.Major, w.QEMU.Minor, w.QEMU.Micro, w.Package = v.Major, v.Minor, v.Micro, v.Package
	return json.Marshal(w)
}

// Decode unmarshals a command's arguments into v. Unknown members and wrong types give an *Error
// that names the member.
func Decode(args json.RawMessage, v any) error {
	if len(args) == 0 {
		args = json.RawMessage("{}")
	}
	d := json.NewDecoder(bytes.NewReader(args))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		return nil
	}
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return errorf("Invalid parameter type for '%s', expected: %s, found: %s",
			te.Field, te.Type, te.Value)
	}
	// encoding/json has no error type for an unknown member, only this text.
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return errorf("Parameter '%s' is unexpected", strings.Trim(name, `"`))
	}
	return errorf("Invalid arguments: %v", err)
}

// Typed returns a Handler whose arguments are decoded into an A, see [Decode]. struct{} stands for
// no arguments.
func Typed[A any](run func(ctx context.Context, args A) (any, error)) Handler {
	return func(ctx context.Context, raw json.RawMessage) (any, error) {
		var args A
		if err := Decode(raw, &args); err != nil {
			return nil, err
		}
		return run(ctx, args)
	}
}

// request is one parsed command. ID is set even after a parse error if the text was an object, so
// that the error reply can carry it.
type request struct {
	Execute string
	Args    json.RawMessage // an object
	ID      json.RawMessage // nil: none given
}

// parseRequest parses one JSON text, with the checks and error texts of QEMU's
// qmp_dispatch_check_obj.
func parseRequest(text []byte) (request, *Error) {
	r := request{Args: json.RawMessage("{}")}
	if text[0] != '{' {
		if !json.Valid(text) {
			return r, errorf("JSON parse error, invalid text")
		}
		return r, errorf("QMP input must be a JSON object")
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return r, errorf("JSON parse error, %v", err)
	}
	r.ID = members["id"]
	for name, value := range members {
		switch name {
		case "id":
		case "execute":
			// null would leave the string empty without an error.
			if value[0] != '"' || json.Unmarshal(value, &r.Execute) != nil {
				return r, errorf("QMP input member 'execute' must be a string")
			}
		case "arguments":
			if value[0] != '{' {
				return r, errorf("QMP input member 'arguments' must be an object")
			}
			r.Args = value
		default:
			return r, errorf("QMP input member '%s' is unexpected", name)
		}
	}
	if _, ok := members["execute"]; !ok {
		return r, errorf("QMP input lacks member 'execute'")
	}
	return r, nil
}

// encodeLine encodes v as one line, without escaping <, > and &.
func encodeLine(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// encodeReply returns the line of a command's reply, and the error in it. That error is a new one
// if the value cannot be encoded or is too long for a line.
func encodeReply(id json.RawMessage, value any, failure *Error) ([]byte, *Error) {
	if failure == nil {
		if value == nil {
			value = struct{}{}
		}
		line, err := encodeLine(struct {
			Return any             `json:"return"`
			ID     json.RawMessage `json:"id,omitempty"`
		}{value, id})
		switch {
		case err != nil:
			failure = errorf("reply cannot be encoded as JSON: %v", err)
		case len(line) > maxText:
			failure = errorf("reply of %d bytes is longer than the %d a line may have: ask for "+
				"less at once", len(line), maxText)
		default:
			return line, nil
		}
	}
	line, err := encodeError(id, failure)
	if err == nil && len(line) <= maxText {
		return line, failure
	}
	// The id itself may be almost as long as a line: reply without it.
	if line, err = encodeError(nil, failure); err == nil {
		return line, failure
	}
	return []byte(`{"error":{"class":"GenericError","desc":"internal error"}}` + "\n"), failure
}

func encodeError(id json.RawMessage, failure *Error) ([]byte, error) {
	return encodeLine(struct {
		Error *Error          `json:"error"`
		ID    json.RawMessage `json:"id,omitempty"`
	}{failure, id})
}

// truncate shortens s to at most n bytes of whole characters.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// encodeEvent returns the line of an event; data is encoded JSON.
func encodeEvent(name string, data json.RawMessage, at time.Time) ([]byte, error) {
	type timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int   `json:"microseconds"`
	}
	return encodeLine(struct {
		Event string          `json:"event"`
		Data  json.RawMessage `json:"data"`
		At    timestamp       `json:"timestamp"`
	}{name, data, timestamp{at.Unix(), at.Nanosecond() / 1000}})
}
