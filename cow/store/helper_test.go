package store

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cowblk/cow/imagefile"
	"cowblk/internal/test"
)

// ctx is the context of tests that interrupt nothing.
var ctx = context.Background()

func noEnv(string) string { return "" }

// newStore returns an empty store whose clock stands still.
func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "store"))
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{
		Log: slog.New(slog.DiscardHandler), Getenv: noEnv,
		Now: func() time.Time { return time.Date(2006, 11, 27, 12, 0, 0, 0, time.UTC) },
	})
	test.Must(t, err)
	return s
}

// noise returns n bytes without runs of zeros that do not compress. Equal seeds give equal bytes.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

// sparse returns size bytes with pieces of noise at the offsets.
func sparse(size int, at ...int) []byte {
	p := make([]byte, size)
	for i, off := range at {
		copy(p[off:], noise(uint64(i+1), min(70000, size-off)))
	}
	return p
}

func write(t testing.TB, path string, data []byte) string {
	t.Helper()
	test.Must(t, os.WriteFile(path, data, 0o644))
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	test.Must(t, err)
	return data
}

// manifestOf returns the manifest of a disk.
func manifestOf(t testing.TB, s *Store, name string) *Manifest {
	t.Helper()
	m, err := s.Disk(name)
	test.Must(t, err)
	return m
}

// tempFile writes data to a new file.
func tempFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	return write(t, filepath.Join(t.TempDir(), name), data)
}

// importRaw imports data as an image.
func importRaw(t testing.TB, s *Store, name string, data []byte) *Image {
	t.Helper()
	img, err := s.Import(ctx, tempFile(t, "src.raw", data), name,
		ImportOptions{Format: imagefile.Raw})
	test.Must(t, err)
	return img
}

func create(t testing.TB, s *Store, name string, o CreateOptions) *Manifest {
	t.Helper()
	m, err := s.Create(ctx, name, o)
	test.Must(t, err)
	return m
}

func openDisk(t testing.TB, s *Store, name string) *Opened {
	t.Helper()
	o, err := s.OpenDisk(ctx, name, OpenOptions{})
	test.Must(t, err)
	return o
}

// put opens a disk, writes p durably and closes the disk.
func put(t testing.TB, s *Store, name string, p []byte, off int64) {
	t.Helper()
	o := openDisk(t, s, name)
	test.Must(t, test.Err(o.Disk.WriteAt(p, off)))
	test.Must(t, o.Disk.Flush())
	test.Must(t, o.Close())
}

// content returns the content of a disk as a guest reads it.
func content(t testing.TB, s *Store, name string) []byte {
	t.Helper()
	o := openDisk(t, s, name)
	p := make([]byte, o.Disk.Size())
	test.Must(t, test.Err(o.Disk.ReadAt(p, 0)))
	test.Must(t, o.Close())
	return p
}

// wantContent reports a disk that does not read as want: what is wrong then.
func wantContent(t testing.TB, s *Store, name string, want []byte, what string) {
	t.Helper()
	if !bytes.Equal(content(t, s, name), want) {
		t.Error(what)
	}
}

// tryOpen returns the error of opening a disk.
func tryOpen(s *Store, name string) error {
	o, err := s.OpenDisk(ctx, name, OpenOptions{})
	if err == nil {
		err = o.Close()
	}
	return err
}

func sum(p []byte) string {
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:])
}

// chunkSum returns the chunk digest of cow/FORMAT.md.
func chunkSum(p []byte) string {
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
	for k := 0; k*65536 < len(p); k++ {
		chunk := p[k*65536 : min(len(p), (k+1)*65536)]
		if bytes.Count(chunk, []byte{0}) == len(chunk) {
			continue
		}
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(k)))
		s := sha256.Sum256(chunk)
		h.Write(s[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// snapshot returns the hash of every file below dir. It leaves out lock files: a process that has
// the disk open writes its PID there.
func snapshot(t testing.TB, dirs ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() == lockFile {
				return err
			}
			if d.Name() == indexDir {
				return fs.SkipDir // a cache
			}
			if d.IsDir() {
				all[path] = "directory"
				return nil
			}
			data, err := os.ReadFile(path)
			all[path] = sum(data)
			return err
		})
		test.Must(t, err)
	}
	return all
}

// sameFiles compares two snapshots.
func sameFiles(t testing.TB, before, after map[string]string) {
	t.Helper()
	for path, h := range before {
		if after[path] != h {
			t.Errorf("%s has changed or is gone", path)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s is new", path)
		}
	}
}

// qcow2File describes an image for buildQcow2.
type qcow2File struct {
	clusterBits uint
	size        int
	data        []byte       // content; clusters of zeros stay unallocated
	alloc       map[int]bool // clusters of zeros to allocate
	compressed  bool
	backing     string
	backingFmt  string
}

// buildQcow2 writes a version 3 image (QEMU, docs/interop/qcow2.txt), without refcounts: readers do
// not need them.
func buildQcow2(f qcow2File) []byte {
	be := binary.BigEndian
	cluster := 1 << f.clusterBits
	entries := cluster / 8
	clusters := (f.size + cluster - 1) / cluster
	l1Size := (clusters + entries - 1) / entries
	l1Clusters := (l1Size*8 + cluster - 1) / cluster
	headClusters := max(1, (1024+cluster-1)/cluster)
	out := make([]byte, (headClusters+l1Clusters+l1Size)*cluster)
	copy(out, "QFI\xfb")
	be.PutUint32(out[4:], 3)
	be.PutUint32(out[20:], uint32(f.clusterBits))
	be.PutUint64(out[24:], uint64(f.size))
	be.PutUint32(out[36:], uint32(l1Size))
	be.PutUint64(out[40:], uint64(headClusters*cluster))
	be.PutUint32(out[56:], 1) // no reader uses the refcount table
	be.PutUint32(out[96:], 4)
	be.PutUint32(out[100:], 104)
	if f.backing != "" {
		be.PutUint32(out[104:], 0xe2792aca) // backing file format name
		be.PutUint32(out[108:], uint32(len(f.backingFmt)))
		copy(out[112:120], f.backingFmt)
		be.PutUint64(out[8:], 200)
		be.PutUint32(out[16:], uint32(len(f.backing)))
		copy(out[200:], f.backing)
	}
	l2 := (headClusters + l1Clusters) * cluster
	for i := range l1Size {
		be.PutUint64(out[headClusters*cluster+i*8:], uint64(l2+i*cluster)|1<<63)
	}
	for i := range clusters {
		piece := make([]byte, cluster)
		if i*cluster < len(f.data) {
			copy(piece, f.data[i*cluster:])
		}
		if !f.alloc[i] && bytes.Equal(piece, make([]byte, cluster)) {
			continue
		}
		at := len(out)
		entry := uint64(at) | 1<<63
		if f.compressed {
			var z bytes.Buffer
			w, _ := flate.NewWriter(&z, 6)
			w.Write(piece)
			w.Close()
			shift := 62 - (f.clusterBits - 8)
			entry = 1<<62 | uint64((z.Len()+511)/512)<<shift | uint64(at)
			piece = append(z.Bytes(), make([]byte, 511)...)[:(z.Len()+511)/512*512]
		}
		be.PutUint64(out[l2+i*8:], entry)
		out = append(out, piece...)
		if pad := len(out) % cluster; pad != 0 {
			out = append(out, make([]byte, cluster-pad)...)
		}
	}
	return out
}
