package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/internal/test"
)

// Offsets of header fields, see FORMAT.md.
const (
	atVersion, atMapOffset, atMustRefuse, atClear, atUUID, atParent, atSize, atBlockSize = 8, 12,
		16, 32, 40, 56, 72, 80
	atState, atFlags, atMapCRC, atOwned, atDataOffset, atCreated, atSealedAt, atBaseSize = 84, 88,
		92, 96, 104, 112, 120, 128
	atBase, atSumsCRC, atReserved, atHeaderCRC = 136, 168,
		172, 508
)

// sumTable is the offset of the data checksums in the map of such a small disk.
const sumTable = layer.MapOffset + layer.MapPageSize

// hurt is a store to be damaged. vm1 has a sealed layer with the tag t and a head on the image img.
// vm2 is a clone of vm1@t. bare has no base and owns nothing. place lies on a file outside the
// store.
type hurt struct {
	*Store
	t    *testing.T
	base string // the base file of place
}

// Map and data of one of the layers.
func (h *hurt) files(name string) (mapPath, dataPath string) {
	h.t.Helper()
	l := h.role(name)
	return h.path(l.Map), h.path(l.Data)
}

// role returns a layer: SEALED (of vm1), or the head of DISK.
func (h *hurt) role(name string) *Layer {
	h.t.Helper()
	if name == "SEALED" {
		m, err := h.Disk("vm1")
		test.Must(h.t, err)
		return &m.Layers[0]
	}
	return head(h.t, h.Store, name)
}

// put overwrites bytes of a file.
func (h *hurt) put(path string, off int64, p ...byte) {
	h.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(p, off)
		f.Close()
	}
	test.Must(h.t, err)
}

// header overwrites bytes of a layer's header, and corrects its checksum if sum is set.
func (h *hurt) header(name string, sum bool, off int64, p ...byte) {
	h.t.Helper()
	path, _ := h.files(name)
	h.put(path, off, p...)
	if !sum {
		return
	}
	data := readFile(h.t, path)
	crc := crc32.Checksum(data[:atHeaderCRC], crc32.MakeTable(crc32.Castagnoli))
	h.put(path, atHeaderCRC, binary.LittleEndian.AppendUint32(nil, crc)...)
}

func (h *hurt) truncate(path string, n int64) {
	h.t.Helper()
	test.Must(h.t, os.Truncate(path, n))
}

// manifest rewrites a disk's manifest as text.
func (h *hurt) manifest(name, from, to string) {
	h.t.Helper()
	path := h.path(disksDir, name, diskFile)
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(from)) {
		h.t.Fatal(err, from)
	}
	write(h.t, path, bytes.Replace(data, []byte(from), []byte(to), 1))
}

func (h *hurt) remove(path string) {
	h.t.Helper()
	test.Must(h.t, os.RemoveAll(path))
}

// dirty leaves a disk as a process does that is killed after a flush.
func (h *hurt) dirty(name string) {
	h.t.Helper()
	o := openDisk(h.t, h.Store, name)
	test.Must(h.t, o.Disk.Flush())
	path, _ := h.files(name)
	data := readFile(h.t, path)
	test.Must(h.t, o.Close())
	write(h.t, path, data)
}

// sums gives the sealed layer data checksums.
func (h *hurt) sums() {
	h.t.Helper()
	o := openDisk(h.t, h.Store, "vm1")
	test.Must(h.t, errors.Join(o.Disk.AddChecksums(ctx, nil), o.Close()))
}

// orphan adds a layer that no manifest names and that owns blocks.
func (h *hurt) orphan(blocks uint64) {
	h.t.Helper()
	l := storeLayer(uuid.New(), time.Now())
	p := h.paths(&l)
	test.Must(h.t, os.MkdirAll(filepath.Dir(p.Map), 0o755))
	f, err := layer.CreateHead(h.fs, p, layer.CreateParams{UUID: l.UUID, Size: 1 << 20})
	test.Must(h.t, err)
	f.Bitmap().Set(0, blocks)
	test.Must(h.t, f.Close())
}

// unsealed marks vm1's lower layer as not sealed, as if a promotion had been interrupted before the
// seal.
func (h *hurt) unsealed() {
	h.header("SEALED", false, atState, 1, 0, 0, 0, 0, 0, 0, 0)
	h.header("SEALED", true, atSealedAt, make([]byte, 8)...)
}

// work leaves a transaction directory without a process.
func (h *hurt) work(file string, content any) {
	h.t.Helper()
	dir := h.path(tmpDir, uuid.NewString())
	data, isText := content.(string)
	if !isText {
		j, err := json.Marshal(content)
		test.Must(h.t, err)
		data = string(j)
	}
	test.Must(h.t, os.MkdirAll(dir, 0o755))
	write(h.t, filepath.Join(dir, lockFile), nil)
	write(h.t, filepath.Join(dir, file), []byte(data))
}

// decided leaves an interrupted promotion of vm1 and vm2 that had reached only vm1. It is to be
// completed or undone.
func (h *hurt) decided(undo bool) {
	h.t.Helper()
	var disks []*Manifest
	for _, name := range []string{"vm1", "vm2"} {
		m, err := h.Disk(name)
		test.Must(h.t, err)
		disks = append(disks, m)
	}
	p, err := h.PreparePromotion(ctx, disks, "u")
	test.Must(h.t, err)
	for _, l := range p.Heads() {
		test.Must(h.t, l.Close())
	}
	h.fs = failsAfter(h.fs, "vm2", "vm1")
	commit := func() error { return p.replace(stagedAfter) }
	if undo {
		commit = p.Commit
	}
	if err := commit(); err == nil {
		h.t.Fatal("the change was made")
	}
	h.fs = withoutSync()
	p.txn.lock.Close() // the process dies
}

// swap exchanges two files or directories.
func (h *hurt) swap(a, b string) {
	h.t.Helper()
	for _, r := range [][2]string{{a, a + "x"}, {b, a}, {a + "x", b}} {
		test.Must(h.t, os.Rename(r[0], r[1]))
	}
}

// damage is one way to damage a store.
type damage struct {
	name string
	do   func(h *hurt)
	// want lists the problems that check finds, as problemTexts formats them. A repair repairs
	// those that begin with "repairable" and leaves the others, unless otherwise says something
	// else.
	want    []string
	refused []string // disks that cannot be opened before a repair
	after   []string // the same after a repair
}

// otherwise lists the results of a repair whose first step changes the later ones.
var otherwise = map[string][]string{
	"interrupted promotion of two disks": {
		"repaired store transaction directory: work of a process that is gone",
		"repaired vm1 layer SEALED: state of a layer below the head",
		"repaired vm2 layer SEALED: state of a layer below the head",
	},
	"promotion of two disks interrupted while it was undone": {"repaired store transaction directory: work of a process that is gone"},
}

var vms = []string{"vm1", "vm2"}

func damages() []damage {
	vm1 := []string{"vm1"}
	all := []damage{
		{name: "nothing", do: func(*hurt) {}},
		{name: "head not closed", do: func(h *hurt) { h.dirty("vm1") }},

		{"bit of the head's header",
			func(h *hurt) { p, _ := h.files("vm1"); flip(h.t, p, atFlags) },
			[]string{"repairable vm1 layer vm1: header checksum"}, vm1, nil},
		{"bit of a sealed header",
			func(h *hurt) { p, _ := h.files("SEALED"); flip(h.t, p, atMapCRC) },
			[]string{"repairable vm1 layer SEALED: header checksum",
				"repairable vm2 layer SEALED: header checksum"}, vms, nil},
		{"head's header overwritten with what the manifest knows",
			func(h *hurt) { h.header("vm1", false, atUUID, noise(1, 44)...) },
			[]string{"repairable vm1 layer vm1: header checksum"}, vm1, nil},
		{"sealed header overwritten with what the manifest knows",
			func(h *hurt) { h.header("SEALED", false, 0, noise(1, 16)...) },
			[]string{"repairable vm1 layer SEALED: magic", "repairable vm2 layer SEALED: magic"},
			vms, nil},
		{"fingerprint in the header overwritten",
			func(h *hurt) { h.header("SEALED", false, atBaseSize, noise(1, 40)...) },
			[]string{"repairable vm1 layer SEALED: header checksum",
				"repairable vm2 layer SEALED: header checksum"}, vms, nil},
		{"created overwritten", func(h *hurt) { h.header("vm1", false, atCreated, noise(1, 8)...) },
			[]string{"repairable vm1 layer vm1: header checksum"}, vm1, nil},
		{"map checksum in the header overwritten",
			func(h *hurt) { h.header("SEALED", false, atMapCRC, noise(1, 4)...) },
			[]string{"left vm1 layer SEALED: header checksum",
				"left vm2 layer SEALED: header checksum"}, vms, vms},
		{"header zeroed", func(h *hurt) { h.header("vm1", false, 0, make([]byte, 512)...) },
			[]string{"left vm1 layer vm1: magic"}, vm1, vm1},
		{"header cut off", func(h *hurt) { p, _ := h.files("vm1"); h.truncate(p, 100) },
			[]string{"left vm1 layer vm1: header"}, vm1, vm1},

		{"version with a right checksum", func(h *hurt) { h.header("vm1", true, atVersion, 2) },
			[]string{"left vm1 layer vm1: format version"}, vm1, vm1},
		{"unknown feature", func(h *hurt) { h.header("vm1", true, atMustRefuse, 8) },
			[]string{"left vm1 layer vm1: must-refuse features"}, vm1, vm1},
		{"another UUID", func(h *hurt) { h.header("vm1", true, atUUID, 8) },
			[]string{"left vm1 layer vm1: UUID"}, vm1, vm1},
		{"another parent", func(h *hurt) { h.header("vm1", true, atParent, 8) },
			[]string{"left vm1 layer vm1: parent"}, vm1, vm1},
		{"no parent", func(h *hurt) { h.header("vm2", true, atParent, make([]byte, 16)...) },
			[]string{"left vm2 layer vm2: parent"}, []string{"vm2"}, []string{"vm2"}},
		{"larger", func(h *hurt) { h.header("vm1", true, atSize+2, 0x20) },
			[]string{"left vm1 layer vm1: size of the disk in bytes"}, vm1, vm1},
		{"lower layer larger", func(h *hurt) { h.header("SEALED", true, atSize+1, 0x10) },
			[]string{"left vm1 layer SEALED: size of the disk in bytes",
				"left vm2 layer SEALED: size of the disk in bytes"}, vms, vms},
		{"another block size", func(h *hurt) { h.header("vm1", true, atBlockSize, 0, 2) },
			[]string{"left vm1 layer vm1: block size in bytes"}, vm1, vm1},
		{"another base", func(h *hurt) { h.header("vm1", true, atBase, 9, 9) },
			[]string{"left vm1 layer vm1: fingerprint and size of the base"}, vm1, vm1},
		{"another data offset", func(h *hurt) { h.header("vm1", true, atDataOffset+1, 2) },
			[]string{"left vm1 layer vm1: offset of the data in bytes"}, vm1, vm1},
		{"head is sealed", func(h *hurt) { h.header("vm1", true, atState, 2) },
			[]string{"left vm1 layer vm1: state of the top layer"}, vm1, vm1},
		{"lower layer is not sealed", func(h *hurt) { h.unsealed() },
			[]string{"repairable vm1 layer SEALED: state of a layer below the head",
				"repairable vm2 layer SEALED: state of a layer below the head"}, nil, nil},

		{"bit lost in a clean head",
			func(h *hurt) { p, _ := h.files("vm1"); h.put(p, layer.MapOffset, 0) },
			[]string{"left vm1 layer vm1: checksum of the map"}, vm1, vm1},
		{"bit moved in a clean head",
			func(h *hurt) { p, _ := h.files("vm1"); h.put(p, layer.MapOffset, 6) },
			[]string{"left vm1 layer vm1: checksum of the map"}, vm1, vm1},
		{"bit more in a sealed map",
			func(h *hurt) { p, _ := h.files("SEALED"); flip(h.t, p, layer.MapOffset+1) },
			[]string{"left vm1 layer SEALED: checksum of the map",
				"left vm2 layer SEALED: checksum of the map"}, vms, vms},
		{"bit beyond the end of a clean head",
			func(h *hurt) { p, _ := h.files("vm1"); h.put(p, layer.MapOffset+100, 0x40) },
			[]string{"repairable vm1 layer vm1: bitmap"}, vm1, nil},
		{"bit beyond the end of a head that was not closed",
			func(h *hurt) {
				h.dirty("vm1")
				p, _ := h.files("vm1")
				h.put(p, layer.MapOffset+4095, 0xff)
			},
			[]string{"repairable vm1 layer vm1: bitmap"}, vm1, nil},
		{"bit beyond the end of a sealed map",
			func(h *hurt) { p, _ := h.files("SEALED"); h.put(p, layer.MapOffset+200, 1) },
			[]string{"repairable vm1 layer SEALED: bitmap", "repairable vm2 layer SEALED: bitmap"},
			vms, nil},
		{"bits beyond the end, and a wrong map", func(h *hurt) {
			p, _ := h.files("SEALED")
			h.put(p, layer.MapOffset+200, 1)
			h.put(p, layer.MapOffset, 0x70)
		}, []string{
			"left vm1 layer SEALED: bitmap", "left vm1 layer SEALED: checksum of the map",
			"left vm2 layer SEALED: bitmap", "left vm2 layer SEALED: checksum of the map",
		}, vms, vms},

		{"map cut behind its bits",
			func(h *hurt) { p, _ := h.files("vm1"); h.truncate(p, layer.MapOffset+8) },
			[]string{"repairable vm1 layer vm1: length of the map"}, vm1, nil},
		{"sealed map cut behind its bits",
			func(h *hurt) { p, _ := h.files("SEALED"); h.truncate(p, layer.MapOffset+777) },
			[]string{"repairable vm1 layer SEALED: length of the map",
				"repairable vm2 layer SEALED: length of the map"}, vms, nil},
		{"map cut", func(h *hurt) { p, _ := h.files("vm1"); h.truncate(p, layer.MapOffset) },
			[]string{"left vm1 layer vm1: length of the map",
				"left vm1 layer vm1: checksum of the map"}, vm1, vm1},
		{"map cut, of a head that was not closed",
			func(h *hurt) {
				h.dirty("vm1")
				p, _ := h.files("vm1")
				h.truncate(p, layer.MapOffset+8)
			},
			[]string{"left vm1 layer vm1: length of the map"}, vm1, vm1},
		{"map of a disk that owns nothing cut",
			func(h *hurt) { p, _ := h.files("bare"); h.truncate(p, 512) },
			[]string{"repairable bare layer bare: length of the map"}, []string{"bare"}, nil},
		{"header and map", func(h *hurt) {
			p, _ := h.files("vm1")
			flip(h.t, p, atOwned)
			h.put(p, layer.MapOffset+100, 0x40)
			h.truncate(p, layer.MapOffset+101)
		}, []string{"repairable vm1 layer vm1: header checksum",
			"repairable vm1 layer vm1: length of the map", "repairable vm1 layer vm1: bitmap"}, vm1,
			nil},

		{"data of a sealed layer, which only a full check finds",
			func(h *hurt) { h.sums(); _, p := h.files("SEALED"); flip(h.t, p, 5000) }, nil, vms,
			vms},
		{"checksum of data of a sealed layer",
			func(h *hurt) { h.sums(); p, _ := h.files("SEALED"); flip(h.t, p, sumTable+1) },
			[]string{
				"repairable vm1 layer SEALED: checksum of the checksums of the data",
				"repairable vm2 layer SEALED: checksum of the checksums of the data",
			}, vms, nil},
		{"checksums of data of a sealed layer cut",
			func(h *hurt) { h.sums(); p, _ := h.files("SEALED"); h.truncate(p, sumTable+5) },
			[]string{
				"repairable vm1 layer SEALED: length of the map",
				"repairable vm1 layer SEALED: checksum of the checksums of the data",
				"repairable vm2 layer SEALED: length of the map",
				"repairable vm2 layer SEALED: checksum of the checksums of the data",
			}, vms, nil},

		{"data cut behind the last owned block",
			func(h *hurt) { _, p := h.files("vm1"); h.truncate(p, 40960) },
			[]string{"repairable vm1 layer vm1: length of the data"}, nil, nil},
		{"data cut", func(h *hurt) { _, p := h.files("vm1"); h.truncate(p, 4096) },
			[]string{"left vm1 layer vm1: length of the data (last owned block is 3)"}, vm1, vm1},
		{"sealed data cut", func(h *hurt) { _, p := h.files("SEALED"); h.truncate(p, 8191) },
			[]string{"left vm1 layer SEALED: length of the data (last owned block is 1)",
				"left vm2 layer SEALED: length of the data (last owned block is 1)"}, vms, vms},
		{"map gone", func(h *hurt) { p, _ := h.files("vm1"); h.remove(p) },
			[]string{"left vm1 layer vm1: map"}, vm1, vm1},
		{"data gone", func(h *hurt) { _, p := h.files("SEALED"); h.remove(p) },
			[]string{"left vm1 layer SEALED: data", "left vm2 layer SEALED: data"}, vms, vms},
		{"layer gone", func(h *hurt) { p, _ := h.files("vm1"); h.remove(filepath.Dir(p)) },
			[]string{"left vm1 layer vm1: map", "left vm1 layer vm1: data"}, vm1, vm1},
		{"heads exchanged", func(h *hurt) {
			a, _ := h.files("vm1")
			b, _ := h.files("vm2")
			h.swap(filepath.Dir(a), filepath.Dir(b))
		}, []string{"left vm1 layer vm1: UUID", "left vm2 layer vm2: UUID"}, vms, vms},
		{"maps of head and sealed layer exchanged", func(h *hurt) {
			a, _ := h.files("vm1")
			b, _ := h.files("SEALED")
			h.swap(a, b)
		}, []string{"left vm1 layer SEALED: UUID", "left vm1 layer vm1: UUID",
			"left vm2 layer SEALED: UUID"}, vms, vms},
	}
	return append(all, moreDamages()...)
}
