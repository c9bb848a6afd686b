package layer

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// sample makes a layer of 257 blocks, the last partial, that owns blocks 5 to 8, and the Known of
// its manifest.
func sample(t testing.TB, sealed bool) (Paths, Known) {
	t.Helper()
	p := paths(t)
	k := Known{
		UUID: uuid.New(), Parent: uuid.New(), BlockSize: 4096, Base: Fingerprint{1, 2, 3},
		BaseSize: 777,
		Size:     1<<20 + 512, Created: time.Unix(1700000000, 5).UTC(),
	}
	l := newHead(t, p, CreateParams{UUID: k.UUID, Parent: k.Parent, Size: k.Size,
		Created: k.Created, Base: k.Base, BaseSize: k.BaseSize})
	write(t, l, 5, 4)
	if sealed {
		test.Must(t, l.Seal(time.Unix(1700000001, 0)))
	}
	test.Must(t, l.Close())
	return p, k
}

func readSector(t testing.TB, name string) (sector [SectorSize]byte) {
	t.Helper()
	content := readFile(t, name)
	copy(sector[:], content)
	return sector
}

// A single flipped bit of a header is restored, at any position (every third is tried), also in the
// checksum.
func TestRestoreOneBit(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		p, k := sample(t, sealed)
		was := readSector(t, p.Map)
		for bit := 0; bit < SectorSize*8; bit += 3 {
			damaged := was
			damaged[bit/8] ^= 1 << (bit % 8)
			if got, _, ok := restoreHeader(damaged, p, k); !ok || got != was {
				t.Fatalf("sealed %v, bit %d: restored %v", sealed, bit, ok)
			}
		}
	}
}

// Any damage of the fields that the manifest knows is restored.
func TestRestoreKnownFields(t *testing.T) {
	p, k := sample(t, true)
	was := readSector(t, p.Map)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, fields := range [][2]int{
		{offMagic, offMustRefuse}, {offUUID, offSize}, {offSize, offBlockSize},
		{offBlockSize, offState}, {offDataOffset, offCreated},
		{offCreated, offSealedAt}, {offBaseSize, offChecksumsCRC}, {offUUID, offState},
	} {
		damaged := was
		for i := fields[0]; i < fields[1]; i++ {
			damaged[i] = byte(rng.Uint32())
		}
		if got, _, ok := restoreHeader(damaged, p, k); !ok || got != was {
			t.Errorf("bytes %d to %d: restored %v", fields[0], fields[1], ok)
		}
	}
}

// Damage without proof is not restored: several bits of fields that only the header has, another
// layer's header, anything without a manifest.
func TestRestoreRefuses(t *testing.T) {
	p, k := sample(t, true)
	was := readSector(t, p.Map)
	refuse := func(name string, sector [SectorSize]byte, k Known) {
		t.Helper()
		if _, h, ok := restoreHeader(sector, p, k); ok {
			t.Errorf("%s: restored as %+v", name, h)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		damaged := was
		for range 2 + rng.IntN(4) {
			damaged[offState+rng.IntN(offDataOffset-offState)] ^= byte(1 + rng.IntN(255))
		}
		if damaged != was {
			if got, _, ok := restoreHeader(damaged, p, k); ok && got != was {
				t.Fatal("restored to another header")
			}
		}
		for i := range damaged {
			damaged[i] = byte(rng.Uint32())
		}
		refuse("noise", damaged, k)
	}
	refuse("zeros", [SectorSize]byte{}, k)
	one := was
	one[offOwned] ^= 1
	other := k
	other.UUID = uuid.New()
	refuse("of another layer", one, other)
	other = k
	other.Parent = uuid.Nil
	refuse("of another parent", one, other)
	refuse("of which nothing is known", one, Known{})
	refuse("that is not damaged", was, k)
	newer := was
	newer[offMustRefuse] = 1
	putChecksum(&newer)
	refuse("of a newer program", newer, k)
}

// One repair fixes everything, and leaves the layer as it was before the damage.
func TestRepair(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		p, k := sample(t, sealed)
		wantFile := readFile(t, p.Map)
		flip(t, p.Map, offFlags)
		flip(t, p.Map, MapOffset+40)
		test.Must(t, os.Truncate(p.Map, MapOffset+50))
		test.Must(t, os.Truncate(p.Data, 9*4096))
		found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k})
		test.Must(t, err)
		want := []string{RestoreHeader, GrowMap, ClearBits, GrowData}
		var got []string
		for _, f := range found.Findings {
			got = append(got, f.Remedy)
		}
		if !slices.Equal(got, want) || found.Owned != 4 || found.Header.UUID != k.UUID {
			t.Fatalf("sealed %v: found %v, %d blocks", sealed, got, found.Owned)
		}
		done, err := Repair(vfs.OS{}, p, k)
		test.Must(t, err)
		if !slices.Equal(done, want) {
			t.Errorf("sealed %v: repaired %v", sealed, done)
		}
		after := readFile(t, p.Map)
		if !bytes.Equal(after, wantFile) {
			t.Errorf("sealed %v: the map is not what it was (%d and %d bytes)", sealed,
				len(wantFile), len(after))
		}
		if st, err := os.Stat(p.Data); err != nil || st.Size() != k.Size {
			t.Errorf("data: %v, %v", st, err)
		}
		before := snap(t, p.Map, p.Data)
		if done, err := Repair(vfs.OS{}, p, k); err != nil || len(done) != 0 {
			t.Errorf("a second time: %v, %v", done, err)
		}
		for name, b := range snap(t, p.Map, p.Data) {
			if before[name] != b {
				t.Errorf("a second repair modified %s", name)
			}
		}
	}
}

func TestRepairNeedsTheLayerAlone(t *testing.T) {
	p, k := sample(t, true)
	l := reopen(t, p, OpenParams{})
	if _, err := Inspect(vfs.OS{}, p, InspectParams{Known: k, Map: true}); err != nil {
		t.Errorf("beside a reader: %v", err)
	}
	test.ErrorIs(t, test.Err(Repair(vfs.OS{}, p, k)), ErrInUse, "beside a reader")
	test.Must(t, l.Close())
	p, k = sample(t, false)
	reopen(t, p, OpenParams{Write: true})
	test.ErrorIs(t, test.Err(Inspect(vfs.OS{}, p, InspectParams{Known: k})), ErrInUse,
		"beside a writer")
}

// All data is read, and errors are reported.
func TestInspectReadsData(t *testing.T) {
	p, k := sample(t, true)
	var behind int64
	found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k, Data: func(done, total int64) error {
		if done < behind || total != k.Size {
			t.Errorf("%d of %d after %d", done, total, behind)
		}
		behind = done
		return nil
	}})
	test.Must(t, err)
	if len(found.Findings) != 0 || behind != k.Size {
		t.Errorf("%v, read to %d", found.Findings, behind)
	}
	found, err = Inspect(unreadable{}, p, InspectParams{Known: k, Data: func(int64, int64) error {
		return nil
	}})
	test.Must(t, err)
	if len(found.Findings) != 1 || found.Findings[0].File != p.Data ||
		found.Findings[0].Remedy != NoRemedy {
		t.Errorf("unreadable data: %v", found.Findings)
	}
	test.ErrorIs(t, test.Err(Inspect(vfs.OS{}, p, InspectParams{Known: k,
		Data: func(int64, int64) error { return errInjected }})), errInjected, "stopped")
}

// The clean mark of a head is cleared, durably, before anything else is written, once per open; a
// close in order sets it again, with the checksum of the map.
func TestCleanMark(t *testing.T) {
	p, k := sample(t, false)
	h, err := ReadHeader(vfs.OS{}, p.Map)
	test.Must(t, err)
	if !h.Clean || h.Owned != 4 || !h.HasMapCRC() || h.MapCRC == 0 {
		t.Errorf("closed in order: %+v", h)
	}
	r := recording("")
	l, err := Open(r, p, OpenParams{Write: true})
	test.Must(t, err)
	r.expect(t, "open", "write map 0, sync map")
	h, err = ReadHeader(vfs.OS{}, p.Map)
	test.Must(t, err)
	if h.Clean || h.HasMapCRC() || h.Features.ClearOnOpen != 0 {
		t.Errorf("open for writing: %+v", h)
	}
	for block := range uint64(3) {
		write(t, l, 20+block, 1)
		flush(t, l)
	}
	if i := slices.Index(r.log, "write map 0"); i >= 0 {
		t.Errorf("the header was written again before the close: %v", r.log)
	}
	test.Must(t, l.Abandon())
	if found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k}); err != nil ||
		found.Header.Clean || !found.MapRead || found.Owned != 7 {
		t.Errorf("after a crash: %+v, %v", found, err)
	}
	test.Must(t, reopen(t, p, OpenParams{Write: true}).Close())
	if found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k}); err != nil ||
		!found.Header.Clean || found.MapRead || found.Owned != 7 {
		t.Errorf("closed again: %+v, %v", found, err)
	}
}

// A program that does not know the checksum of a head's map clears the feature bit before it
// changes the map; the field is then ignored.
func TestHeadWithoutMapCRC(t *testing.T) {
	p, k := sample(t, false)
	rewriteHeader(t, p.Map, func(s *[SectorSize]byte) {
		binary.LittleEndian.PutUint64(s[offClearOnOpen:], 0)
		binary.LittleEndian.PutUint32(s[offMapCRC:], 0xdeadbeef)
	})
	if found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k, Map: true}); err != nil ||
		len(found.Findings) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	test.Must(t, reopen(t, p, OpenParams{Write: true}).Close())
	if h, err := ReadHeader(vfs.OS{}, p.Map); err != nil || !h.HasMapCRC() ||
		h.MapCRC == 0xdeadbeef {
		t.Errorf("closed by this program: %+v, %v", h, err)
	}
}

// FuzzInspect tries headers, maps and lengths of data: nothing panics; a layer without findings can
// be opened; a layer that can be opened has no findings but a data file truncated behind its last
// owned block; a second repair finds nothing to do.
func FuzzInspect(f *testing.F) {
	for _, sealed := range []bool{false, true} {
		p, _ := sample(f, sealed)
		content, err := os.ReadFile(p.Map)
		test.Must(f, err)
		for _, size := range []uint32{1<<20 + 512, 9 * 4096, 100} {
			f.Add(content[:SectorSize], content[MapOffset:], size, true)
			f.Add(content[:SectorSize], content[MapOffset:MapOffset+20], size, false)
		}
	}
	p := paths(f)
	f.Fuzz(func(t *testing.T, header, bitmap []byte, size uint32, sum bool) {
		file := make([]byte, MapOffset, MapOffset+len(bitmap))
		copy(file[:SectorSize], header)
		if sum {
			putChecksum((*[SectorSize]byte)(file))
		}
		test.Must(t, os.WriteFile(p.Map, append(file, bitmap...), 0o600))
		test.Must(t, os.WriteFile(p.Data, nil, 0o600))
		test.Must(t, os.Truncate(p.Data, int64(size%(4<<20))))
		var k Known
		if h, err := ReadHeader(vfs.OS{}, p.Map); err == nil {
			p.DataOffset = h.DataOffset
			k = Known{UUID: h.UUID, Parent: h.Parent, BlockSize: h.BlockSize, Base: h.Base,
				BaseSize: h.BaseSize, Size: h.Size, Created: h.Created}
		}
		for range 2 {
			found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k, Map: true})
			test.Must(t, err)
			sound := !slices.ContainsFunc(found.Findings, func(f *finding.Finding) bool {
				return f.Remedy != GrowData
			})
			l, err := Open(vfs.OS{}, p, OpenParams{})
			if err == nil {
				test.Must(t, l.Close())
			}
			if sound != (err == nil) {
				t.Fatalf("findings %v, open: %v", found.Findings, err)
			}
			if st, err := os.Stat(p.Map); err == nil && found.Header.Size > 64<<20 &&
				st.Size() < found.Header.MapSize() {
				return // the repair would make huge files
			}
			if found.Header.DataOffset+found.Header.Size > 1<<40 {
				return
			}
			test.Must(t, test.Err(Repair(unsynced{}, p, k)))
			if done, err := Repair(unsynced{}, p, k); err != nil || len(done) != 0 {
				t.Fatalf("a second repair: %v, %v", done, err)
			}
		}
	})
}

// unsynced does not sync.
type unsynced struct{ vfs.OS }

func (u unsynced) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := u.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

type unsyncedFile struct{ vfs.File }

func (unsyncedFile) Datasync() error { return nil }

// unreadable fails reads of large pieces of data files.
type unreadable struct{ vfs.OS }

func (u unreadable) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := u.OS.OpenFile(name, flag, perm)
	return unreadableFile{f}, err
}

type unreadableFile struct{ vfs.File }

func (f unreadableFile) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 && len(p) > SectorSize && bytes.HasSuffix([]byte(f.Name()), []byte("data")) {
		return 0, errInjected
	}
	return f.File.ReadAt(p, off)
}
