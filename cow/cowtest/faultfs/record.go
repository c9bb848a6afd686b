package faultfs

import "fmt"

// Kind is the kind of a Record.
type Kind uint8

// Kinds of records.
const (
	Write    Kind = iota + 1 // Off, Data
	Punch                    // Off, Len
	Truncate                 // Len: the new length
	Create                   // a file, or a directory
	Rename
	Remove
	Sync    // of a file; Failed: see Through
	SyncDir // of a directory; Failed: nothing has become certain
	Mark    // Note: the test's own
)

var kindNames = [...]string{"", "write", "punch", "truncate", "create", "rename", "remove", "sync",
	"sync directory", "mark"}

func (k Kind) String() string { return kindNames[k] }

// Through says how much of a file's unsynced content has reached the device when its sync failed.
type Through uint8

// Results of a failed sync.
const (
	Nothing Through = iota
	Half            // every second sector
	All             // everything: only the result was lost
)

// Record is one entry of a Tape.
type Record struct {
	Kind    Kind
	Name    string // path, at the time of the record
	Off     int64  // bytes
	Len     int64  // bytes; of a write: len(Data)
	Data    []byte
	Failed  bool
	Through Through
	Note    any

	node    inode   // file, synced directory, or what was created
	dir     bool    // a directory was created
	entries []entry // names that changed
	mtime   int64
}

// entry is one name with its new meaning.
type entry struct {
	dir  inode
	name string
	id   inode // 0: nothing
}

// String formats a record in one line.
func (r *Record) String() string {
	s := r.Kind.String() + " " + r.Name
	switch r.Kind {
	case Write, Punch:
		s += fmt.Sprintf(" %d+%d", r.Off, r.Len)
	case Truncate:
		s += fmt.Sprintf(" to %d", r.Len)
	case Mark:
		return fmt.Sprintf("mark %v", r.Note)
	}
	if r.Failed {
		s += " failed"
	}
	return s
}

// isData reports whether the record changes the content or length of a file.
func (r *Record) isData() bool { return r.Kind == Write || r.Kind == Punch || r.Kind == Truncate }

func (r *Record) isName() bool { return r.entries != nil }

// Tape has everything that has happened on a machine since Record.
type Tape struct {
	start   *tree
	boots   int // of the machine
	Records []*Record
}

// Play returns the device at the begin of the tape, for Apply record by record.
func (t *Tape) Play() *Device { return &Device{tree: t.start.clone(), boots: t.boots} }

// Of returns the marks, and the records of one file under all of its names: of the last file with
// the given name.
func (t *Tape) Of(name string) []*Record {
	var id inode
	for _, r := range t.Records {
		if r.Name == name && (r.isData() || r.Kind == Sync) {
			id = r.node
		}
	}
	var out []*Record
	for _, r := range t.Records {
		if r.Kind == Mark || r.node == id && id != 0 && (r.isData() || r.Kind == Sync) {
			out = append(out, r)
		}
	}
	return out
}
