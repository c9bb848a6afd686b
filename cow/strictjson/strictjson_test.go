package strictjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/internal/test"
)

type inner struct {
	Name string `json:"name"`
	Yes  bool   `json:"yes"`
}

type document struct {
	Version int             `json:"version"`
	Size    int64           `json:"size"`
	Dev     uint64          `json:"dev"`
	ID      uuid.UUID       `json:"id"`
	At      time.Time       `json:"at"`
	Inner   *inner          `json:"inner,omitempty"`
	List    []inner         `json:"list"`
	Tag     string          `json:"tag,omitempty"`
	More    []string        `json:"more,omitempty"`
	Until   *time.Time      `json:"until,omitempty"`
	May     json.RawMessage `json:"may-ignore,omitempty"`
}

const good = `{"version": 1, "size": 4096, "dev": 18446744073709551615, "id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
 "at": "2006-11-27T12:00:00Z", "until": "2006-11-27T12:00:00.000000001Z", "tag": "t", "more": ["m"], "inner": {"name": "a\u00e4\ud83d\ude00", "yes": true}, "list": [{"name": "", "yes": false}], "may-ignore": {"x": [1, {"y": null}]}}`

func TestDecode(t *testing.T) {
	var d, std document
	test.Must(t, Decode([]byte(good), &d, Options{}))
	test.Must(t, json.Unmarshal([]byte(good), &std))
	if !reflect.DeepEqual(d, std) {
		t.Errorf("expected what encoding/json reads, %+v, found %+v", std, d)
	}
	if n, ok := Number([]byte(good), "version"); !ok || n != 1 {
		t.Errorf("version: expected 1, found %d, %v", n, ok)
	}
}

// TestTimes: the forms of a time that earlier versions have written, and the others of FORMAT.md,
// are accepted.
func TestTimes(t *testing.T) {
	for _, text := range []string{"0001-01-01T00:00:00Z", "2006-11-27T12:00:00.1Z",
		"2006-11-27T12:00:00.123456789Z", "2006-11-27T12:00:00.100000000Z", "9999-12-31T23:59:59Z",
		"2004-02-29T00:00:00Z"} {
		var d document
		test.Check(t, Decode([]byte(strings.Replace(good, "2006-11-27T12:00:00Z", text, 1)), &d,
			Options{}), text)
		if again := d.At.Format(time.RFC3339Nano); len(text) < 30 && !strings.HasSuffix(text,
			"0000Z") && again != text {
			t.Errorf("expected %s, found %s", text, again)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ what, from, to string }{
		{"another case", `"version"`, `"Version"`},
		{"another case beside", `"version": 1`, `"version": 1, "VERSION": 2`},
		{"case of an inner member", `"yes": true`, `"Yes": true`},
		{"a member twice", `"version": 1`, `"version": 1, "version": 1`},
		{"an inner member twice", `"yes": true`, `"yes": true, "yes": false`},
		{"a name twice, one of them escaped", `"version": 1`, `"version": 1, "\u0076ersion": 1`},
		{"a member twice in what may be ignored", `"x": [1`, `"x": 1, "x": [1`},
		{"a missing member", `"version": 1, `, ``},
		{"a missing inner member", `, "yes": true`, ``},
		{"an unknown member", `"version": 1`, `"version": 1, "new": 1`},
		{"trailing content", `}}`, `}} {}`},
		{"trailing bytes", `}}`, "}}\x00"},
		{"a float", `4096`, `4096.0`},
		{"an exponent", `4096`, `4e3`},
		{"a leading zero", `4096`, `04096`},
		{"a plus", `4096`, `+4096`},
		{"minus zero", `4096`, `-0`},
		{"a number beyond its type", `4096`, `9223372036854775808`},
		{"a number beyond uint64", `18446744073709551615`, `18446744073709551616`},
		{"a negative unsigned number", `18446744073709551615`, `-1`},
		{"a number in a string", `4096`, `"4096"`},
		{"null", `4096`, `null`},
		{"null for an object", `{"name": "a\u00e4\ud83d\ude00", "yes": true}`, `null`},
		{"a UUID in capitals", `6ba7b810`, `6BA7B810`},
		{"a UUID as URN", `"6ba7b810-`, `"urn:uuid:6ba7b810-`},
		{"no time", `2006-11-27T`, `2006-11-27 `},
		{"a time with an offset", `12:00:00Z`, `13:00:00+01:00`},
		{"a time with the offset 0", `12:00:00Z`, `12:00:00+00:00`},
		{"a time with the offset -0", `12:00:00Z`, `12:00:00-00:00`},
		{"a time in small letters", `12:00:00Z`, `12:00:00z`},
		{"a t in a time", `27T12`, `27t12`},
		{"a time with a comma", `00.000000001Z`, `00,000000001Z`},
		{"a time with a point and no digits", `12:00:00Z`, `12:00:00.Z`},
		{"a time with ten digits", `00.000000001Z`, `00.0000000010Z`},
		{"an hour of one digit", `12:00:00Z`, `4:50:17Z`},
		{"a time without seconds", `12:00:00Z`, `12:00Z`},
		{"a leap second", `12:00:00Z`, `23:59:60Z`},
		{"hour 24", `12:00:00Z`, `24:00:00Z`},
		{"a day that does not exist", `2006-11-27`, `2006-02-29`},
		{"a year of five digits", `2006-11-27`, `12006-11-27`},
		{"space behind a time", `12:00:00Z`, `12:00:00Z `},
		{"a time that is null", `"2006-11-27T12:00:00.000000001Z"`, `null`},
		{"an optional text that is empty", `"tag": "t"`, `"tag": ""`},
		{"an optional text that is null", `"tag": "t"`, `"tag": null`},
		{"an optional array that is empty", `["m"]`, `[]`},
		{"an optional array that is null", `["m"]`, `null`},
		{"half a character", `\ud83d\ude00`, `\ud83d`},
		{"a control character", `"a\u00e4`, "\"a\x01"},
		{"no UTF-8", `"a\u00e4`, "\"a\xff"},
		{"a comma too many", `"yes": true}`, `"yes": true,}`},
		{"a comment", `"version"`, `/* */ "version"`},
		{"an array for an object", `{"name": "", "yes": false}`, `[]`},
		{"what may be ignored is no object", `{"x": [1, {"y": null}]}`, `[1]`},
		{"depth", `{"y": null}`, strings.Repeat("[", 40) + strings.Repeat("]", 40)},
		{"endless depth", `{"y": null}`, strings.Repeat("[", 1<<20)},
		{"a byte order mark", `{"version"`, "\ufeff{\"version\""},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s: nothing changed", c.what)
		}
		if err := Decode([]byte(text), new(document), Options{}); err == nil {
			t.Errorf("%s: expected an error, found none", c.what)
		}
	}
	for n := range len(good) {
		if err := Decode([]byte(good[:n]), new(document), Options{}); err == nil {
			t.Errorf("the first %d bytes: expected an error, found none", n)
		}
	}
	if err := Decode([]byte(strings.Replace(good, `"version": 1`, `"version": 1, "new": {}`, 1)),
		new(document), Options{IgnoreUnknown: true}); err != nil {
		t.Errorf("an unknown member that is to be ignored: %v", err)
	}
}

// FuzzDecode: nothing panics; what is decoded equals the result of encoding/json, and is decoded
// again from its output.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"version":1,"Version":2}`))
	f.Add([]byte(`{"a":"\ud800"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d, std, again document
		if Decode(data, &d, Options{}) != nil {
			return
		}
		test.Must(t, json.Unmarshal(data, &std), data, "encoding/json refuses it")
		if !reflect.DeepEqual(d, std) {
			t.Fatalf("%q: expected %+v, found %+v", data, std, d)
		}
		text, err := json.Marshal(d)
		test.Must(t, err)
		test.Must(t, Decode(text, &again, Options{}), text)
	})
}
