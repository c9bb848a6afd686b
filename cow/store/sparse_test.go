package store

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// countReads counts the bytes that a store reads from files, and its calls that look for data.
func countReads(s *Store) (bytesRead, lookups *atomic.Int64) {
	bytesRead, lookups = new(atomic.Int64), new(atomic.Int64)
	s.fs = faultfs.Over(s.fs, func(c faultfs.Call) (f faultfs.Fault) {
		if c.Op == "read" || c.Op == "next data" {
			lookups.Add(1)
			bytesRead.Add(c.Len)
		}
		return f
	})
	return bytesRead, lookups
}

const terabyte = 1 << 40

// sparseFile is 1 TiB with 64 KiB of data at three places.
func sparseFile(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Create(path)
	test.Must(t, err)
	defer f.Close()
	if err := f.Truncate(terabyte); err != nil {
		t.Skipf("the file system of %s takes no file of 1 TiB: %v", path, err)
	}
	for i, off := range []int64{0, terabyte/2 + 12345, terabyte - 65536} {
		test.Must(t, test.Err(f.WriteAt(noise(uint64(i+1), 65536), off)))
	}
	return path
}

// sparseQcow2 is an image of 1 TiB with one L2 table. With entry 0 the table describes the first
// 512 MiB, all not allocated, and there is no other table. Otherwise every 512 MiB have this table,
// filled with the entry.
func sparseQcow2(entry uint64, backing string) []byte {
	const cluster, tables = 65536, terabyte >> 29
	p := buildQcow2(qcow2File{clusterBits: 16, size: cluster, backing: backing, backingFmt: "raw"})
	binary.BigEndian.PutUint64(p[24:], terabyte)
	binary.BigEndian.PutUint32(p[36:], tables)
	for i := range tables {
		if entry != 0 {
			copy(p[cluster+8*i:], p[cluster:cluster+8])
		}
	}
	for i := range cluster / 8 {
		binary.BigEndian.PutUint64(p[2*cluster+8*i:], entry)
	}
	return p
}

// inHole writes a sparseQcow2 whose clusters are all allocated, at a hole of the file.
func inHole(t *testing.T, path, backing string) string {
	t.Helper()
	p := sparseQcow2(0, backing)
	write(t, path, sparseQcow2(uint64(len(p))|1<<63, backing))
	if err := os.Truncate(path, int64(len(p)+65536)); err != nil {
		t.Fatal(err)
	}
	return path
}

// The cost of an import, of the checks of the image and of its use follows the data, not the size.
// The costs counted are bytes read and calls.
func TestImportFollowsData(t *testing.T) {
	dir := t.TempDir()
	raw := sparseFile(t, filepath.Join(dir, "raw"))
	tests := []struct {
		name, path string
		data       int64 // maximum of bytes in the image
		calls      int64
	}{
		{"raw", raw, 5 << 20, 1000},
		{"qcow2", write(t, filepath.Join(dir, "empty"), sparseQcow2(0, "")), 0, 1000},
		{"qcow2 of zero clusters", write(t, filepath.Join(dir, "zero"), sparseQcow2(1, "")), 0,
			1000},
		{"overlay", write(t, filepath.Join(dir, "overlay"), sparseQcow2(0, raw)), 5 << 20, 1000},
		{"overlay of zero clusters", write(t, filepath.Join(dir, "zeroed"), sparseQcow2(1, raw)), 0,
			1000},
		{"qcow2 of clusters in a hole", inHole(t, filepath.Join(dir, "hole"), ""), 0, 1000},
		{"overlay of clusters in a hole", inHole(t, filepath.Join(dir, "covered"), raw), 0, 1000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			bytesRead, lookups := countReads(s)
			// Tables, three samples for a fingerprint of 1.2 MB each, and the data: once to copy,
			// once to verify.
			within := func(what string, passes int64) {
				t.Helper()
				if read, calls := bytesRead.Swap(0), lookups.Swap(0); read > passes*tt.data+8<<20 ||
					calls > tt.calls {
					t.Errorf("%s: %d bytes read in %d calls", what, read, calls)
				}
			}
			img, err := s.Import(ctx, tt.path, "img", ImportOptions{Backing: true})
			test.Must(t, err)
			within("import", 2)
			if a := s.allocated(s.ImageData("img")); a > 1<<20 {
				t.Errorf("%d bytes allocated", a)
			}
			if tt.data == 0 && img.ChunkSHA256 != sum(binary.LittleEndian.AppendUint64(nil,
				terabyte)) {
				t.Errorf("chunk digest of zeros: %s", img.ChunkSHA256)
			}
			if r := check(t, s, CheckOptions{Depth: CheckFull}); r.Found != 0 {
				t.Errorf("check: %+v", r)
			}
			within("check --full", 1)
			create(t, s, "vm1", CreateOptions{From: "img"})
			within("create", 0)
			test.Must(t, openDisk(t, s, "vm1").Close())
			within("open", 0)
		})
	}
}

// The digest does not depend on the position of holes, and distinguishes a chunk of zeros from a
// missing one.
func TestChunkDigestIgnoresHoles(t *testing.T) {
	s := newStore(t)
	data := sparse(5<<20+512, 70000, 3<<20)
	full := importRaw(t, s, "full", data)
	hole := tempFile(t, "hole", data)
	f, err := vfs.OS{}.OpenFile(hole, os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	for _, at := range [][2]int64{{0, 65536}, {1 << 20, 1 << 20}, {4 << 20, 1<<20 + 512}} {
		test.Must(t, f.PunchHole(at[0], at[1]))
	}
	sparse, err := s.Import(ctx, hole, "hole", ImportOptions{})
	test.Must(t, err)
	if full.ChunkSHA256 != sparse.ChunkSHA256 || full.ChunkSHA256 != chunkSum(data) {
		t.Errorf("with holes %s, without %s, want %s", sparse.ChunkSHA256, full.ChunkSHA256,
			chunkSum(data))
	}
	longer := importRaw(t, s, "longer", append(data, make([]byte, 512)...))
	if longer.ChunkSHA256 == full.ChunkSHA256 {
		t.Error("a longer image has the same digest")
	}
}

// The test vectors of cow/FORMAT.md.
func TestChunkDigestVectors(t *testing.T) {
	zeros := make([]byte, 65536)
	one := append(make([]byte, 65535), 1)
	for want, data := range map[string][]byte{
		"41b8f24b79ae38bb5f3af44cf187d022c20517a6f576791e466d536517b68fb9": zeros,
		"199211189d8a3b789466ea31423ad13f98cece4f8a1fb25d4ce514fc0902ac14": one,
	} {
		if got := importRaw(t, newStore(t), "img", data).ChunkSHA256; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
