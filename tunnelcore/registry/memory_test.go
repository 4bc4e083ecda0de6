package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

func openTest(t testing.TB, opts MemoryOptions) *Memory {
	t.Helper()
	m, err := OpenMemory(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}

func testClaim(device string) Claim {
	return Claim{
		Device: device, Instance: "i1", Tunnel: "t1", Node: NodeRef{"n1", "e1"},
		Label: "l-" + device, Lease: time.Hour,
	}
}

func mustClaim(t testing.TB, m *Memory, c Claim) Lease {
	t.Helper()
	l, err := m.Claim(t.Context(), c)
	if err != nil {
		t.Fatalf("Claim(%s): %v", c.Device, err)
	}
	return l
}

// childPath names the environment variable with the file of TestKill's child.
const childPath = "IOTTUNNEL_TEST_KILL"

// claimForEver claims devices, many at a time, and prints each claim that was granted.
func claimForEver(path string) {
	m, err := OpenMemory(MemoryOptions{Path: path})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var next atomic.Int64
	var out sync.Mutex
	for range 16 {
		go func() { // ends with the process, which is killed
			for {
				c := testClaim(fmt.Sprintf("d%d", next.Add(1)))
				l, err := m.Claim(context.Background(), c)
				if err == nil && next.Load()%4 == 0 {
					_, err = m.LeasePorts(context.Background(), l.Holder, []uint16{22}, 1, 65535)
				}
				out.Lock()
				if err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				fmt.Println(c.Device, l.Label, l.Generation)
				out.Unlock()
			}
		}()
	}
	select {}
}

func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	granted := map[string]Lease{} // by device
	for round := range 5 {
		killClaimer(t, path, granted, 150+100*round)
		m, err := OpenMemory(MemoryOptions{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		var highest int64
		for device, want := range granted {
			r, err := m.ByDevice(t.Context(), device)
			// A later claim may be in the file whose answer the kill has cut off.
			if err != nil || r.Label != want.Label || r.Generation < want.Generation {
				t.Fatalf("round %d: ByDevice(%s) = %s %d, %v, but %s %d was granted", round, device, r.Label, r.Generation, err, want.Label, want.Generation)
			}
			if r.Why != WhyNodeGone || r.Online != (Incumbent{}) {
				t.Fatalf("record %+v, want offline", r)
			}
			highest = max(highest, r.Generation)
		}
		if l := mustClaim(t, m, testClaim("after")); l.Generation <= highest {
			t.Errorf("generation %d after %d", l.Generation, highest)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d claims were granted and kept", len(granted))
}

// killClaimer runs this test binary as claimForEver, kills it amidst its work,
// once it has had that many claims, and adds what it printed to granted.
func killClaimer(t *testing.T, path string, granted map[string]Lease, claims int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childPath+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var device string
		var l Lease
		if _, err := fmt.Sscan(lines.Text(), &device, &l.Label, &l.Generation); err != nil {
			t.Errorf("claimer: %s", lines.Text())
			break
		}
		granted[device] = l
		if seen++; seen == claims {
			cmd.Process.Kill() // what it has printed is still read
		}
	}
	cmd.Process.Kill() // twice does no harm
	cmd.Wait()         // says that it was killed
	if seen < claims {
		t.Fatalf("claimer ended after %d claims", seen)
	}
}

func TestSecondProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "folder", "registry.db")
	openTest(t, MemoryOptions{Path: path})
	begin := time.Now()
	_, err := OpenMemory(MemoryOptions{Path: path})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("OpenMemory: %v", err)
	}
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("it took %v to say so", d)
	}
}

func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.db")
	m := openTest(t, MemoryOptions{Path: good})
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() { mustClaim(t, m, testClaim(fmt.Sprintf("d%d", i))) })
	}
	wg.Wait()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	noise := slices.Clone(data)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(noise[2*os.Getpagesize():])
	zeros := slices.Clone(data)
	clear(zeros[2*os.Getpagesize():])
	for name, content := range map[string][]byte{
		"text":      []byte(strings.Repeat("this is no database\n", 10000)),
		"short":     []byte("x"),
		"truncated": data[:len(data)/2],
		"head":      data[:3*os.Getpagesize()],
		"one page":  data[:os.Getpagesize()],
		"noise":     noise,
		"zeros":     zeros,
		"json":      []byte(strings.ReplaceAll(string(data), `{"label"`, `("label"`)),
		"no label":  []byte(strings.ReplaceAll(string(data), `{"label"`, `{"lobel"`)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name+".db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := OpenMemory(MemoryOptions{Path: path})
			if err == nil {
				m.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), path+" is damaged") {
				t.Errorf("OpenMemory: %v", err)
			}
			t.Log(err)
			// The file is let go: who cures it can go on.
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			m = openTest(t, MemoryOptions{Path: path})
			if _, err := m.ByDevice(t.Context(), "d1234"); err != nil {
				t.Errorf("after the cure: %v", err)
			}
		})
	}
}

func TestOtherFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, bucket, key, value string) string {
		path := filepath.Join(dir, name)
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		err = db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucket([]byte(bucket))
			if err != nil {
				return err
			}
			return b.Put([]byte(key), []byte(value))
		})
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]string{
		write("newer.db", "meta", "format", "2"): `format "2"`,
		write("other.db", "users", "a", "b"):     "another program",
		write("empty.db", "meta", "format", "1"): "is damaged",
		dir:                                      "is a directory",
	} {
		m, err := OpenMemory(MemoryOptions{Path: path})
		if err == nil {
			m.Close()
			t.Errorf("%s was opened", path)
		} else if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenMemory: %v, want %s and %q", err, path, want)
		}
	}
	empty := filepath.Join(dir, "nothing.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, openTest(t, MemoryOptions{Path: empty}), testClaim("cam"))
}

// TestFileFormat spells out what is in the file.
func TestFileFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	now := time.UnixMilli(1_900_000_000_000)
	m := openTest(t, MemoryOptions{Path: path, Now: func() time.Time { return now }})
	cam, door := mustClaim(t, m, testClaim("cam")), mustClaim(t, m, testClaim("door"))
	for _, want := range [][]uint16{{22}, nil} {
		if _, err := m.LeasePorts(t.Context(), door.Holder, want, 40001, 40001); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.LeasePorts(t.Context(), cam.Holder, []uint16{22}, 40000, 40000); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(t.Context(), door.Holder, time.Hour, "bye"); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`devices cam {"label":"l-cam","generation":1900000000000000,"online":true,"until_ms":1900004800000,"seen_ms":1900000000000,"ports":{"22":40000}}`,
		`devices door {"label":"l-door","generation":1900000000000001,"until_ms":1900003600000,"seen_ms":1900000000000,"why":"bye"}`,
		`meta format 1`,
		`meta state {"generation":1900000000000001,"clock_ms":1900000000000,"wall_ms":1900000000000}`,
		`rests 40001 {"until_ms":1900000060000,"device":"door","port":22}`,
	}
	if got := dump(t, path); !slices.Equal(got, want) {
		t.Errorf("the file holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Files of versions that did not write whose a resting port is: it rests for all.
func TestRestWithoutOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	now := time.UnixMilli(1_900_000_000_000)
	opts := MemoryOptions{Path: path, Now: func() time.Time { return now }}
	if err := openTest(t, opts).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketRests).Put([]byte("40001"), []byte(`{"until_ms":1900000060000}`))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	m := openTest(t, opts)
	cam := mustClaim(t, m, testClaim("cam")).Holder
	var full *PortsFullError
	if ports, err := m.LeasePorts(t.Context(), cam, []uint16{22}, 40001, 40001); !errors.As(err, &full) {
		t.Errorf("ports %v, %v, want none", ports, err)
	}
	now = now.Add(PortRest)
	if ports, err := m.LeasePorts(t.Context(), cam, []uint16{22}, 40001, 40001); ports[22] != 40001 {
		t.Errorf("ports %v, %v after the rest", ports, err)
	}
	if len(m.resting) != 0 {
		t.Errorf("%v rest", m.resting)
	}
}

// dump returns the keys and values of a file that nobody has open.
func dump(t *testing.T, path string) (lines []string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				lines = append(lines, fmt.Sprintf("%s %s %s", name, k, v))
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// TestSweep has a fleet leave, and expects memory and file to be as if it had
// never been, but for the generation.
func TestSweep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	synctest.Test(t, func(t *testing.T) {
		m := openTest(t, MemoryOptions{Path: path})
		const fleet = 2*sweepSize + 100
		var highest atomic.Int64
		var wg sync.WaitGroup
		for i := range fleet {
			wg.Go(func() {
				c := testClaim(fmt.Sprintf("d%d", i))
				c.Lease = time.Minute
				l := mustClaim(t, m, c)
				if i%100 == 0 {
					if _, err := m.LeasePorts(t.Context(), l.Holder, []uint16{22, 80}, 40000, 49999); err != nil {
						t.Error(err)
					}
				}
				for h := highest.Load(); l.Generation > h && !highest.CompareAndSwap(h, l.Generation); h = highest.Load() {
				}
			})
		}
		wg.Wait()
		time.Sleep(80*time.Second + 3*sweepEvery) // the lease, and the sweeps it takes
		synctest.Wait()
		if n := len(m.ids.after(nil, "", 10)); n != 0 {
			t.Errorf("%d devices are left", n)
		}
		m.labels.Range(func(label, _ any) bool { t.Errorf("label %v is left", label); return false })
		time.Sleep(PortRest + 2*sweepEvery)
		synctest.Wait()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if len(m.ports) != 0 || len(m.resting) != 0 {
			t.Errorf("ports %v are left, of which %v rest", m.ports, m.resting)
		}
		if lines := dump(t, path); len(lines) != 2 {
			t.Errorf("the file holds %q", lines)
		}
		// Nothing is known of the devices any more, but that.
		m = openTest(t, MemoryOptions{Path: path, Now: func() time.Time { return time.Unix(1, 0) }})
		if l := mustClaim(t, m, testClaim("d7")); l.Generation <= highest.Load() || !l.Fresh {
			t.Errorf("%+v after generation %d, with the clock set back", l, highest.Load())
		}
	})
}

// TestClockSetBack: leases run their time whatever happens to the machine's clock.
func TestClockSetBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	opts := MemoryOptions{Path: path, Now: func() time.Time { return now }}
	reopen := func(m *Memory) *Memory {
		t.Helper()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		return openTest(t, opts)
	}
	m := openTest(t, opts)
	l := mustClaim(t, m, testClaim("cam")) // 80 minutes
	now = now.Add(30 * time.Minute)
	now = now.AddDate(-10, 0, 0)
	m = reopen(m)
	r, err := m.ByDevice(t.Context(), "cam")
	if err != nil {
		t.Fatal(err)
	}
	// What passed after the last write went unnoticed, for the clock went back.
	if left := r.Until.Sub(now); left < 50*time.Minute || left > 80*time.Minute {
		t.Errorf("the lease runs %v more, to %v, at %v", left, r.Until, now)
	}
	next := mustClaim(t, m, testClaim("cam"))
	if next.Generation <= l.Generation {
		t.Errorf("generation %d after %d", next.Generation, l.Generation)
	}
	now = now.Add(79 * time.Minute)
	m = reopen(m)
	if _, err := m.ByDevice(t.Context(), "cam"); err != nil {
		t.Errorf("a minute before the end: %v", err)
	}
	now = now.Add(2 * time.Minute)
	if _, err := m.ByDevice(t.Context(), "cam"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a minute after the end: %v", err)
	}
}

// TestWallClockStep: what people are shown follows the wall clock, in one step.
func TestWallClockStep(t *testing.T) {
	begin := time.Now()
	c := newClock(func() time.Time { return begin }, saved{})
	if c.stepped() || c.time(c.read()).Sub(begin).Abs() > time.Millisecond {
		t.Fatal("the clock does not begin at the wall clock")
	}
	// As if the wall clock had been set an hour on, which is no hour passed.
	c.base -= time.Hour.Milliseconds()
	c.last.Store(c.base)
	if !c.stepped() || c.stepped() {
		t.Error("a step of an hour went unnoticed, or is noticed twice")
	}
	if d := c.time(c.read()).Sub(begin); d.Abs() > time.Millisecond {
		t.Errorf("times are %v off after the step", d)
	}
}

func TestClosed(t *testing.T) {
	for _, path := range []string{"", filepath.Join(t.TempDir(), "registry.db")} {
		m := openTest(t, MemoryOptions{Path: path})
		var wg sync.WaitGroup
		var granted, refused atomic.Int32
		for i := range 500 {
			wg.Go(func() {
				if _, err := m.Claim(t.Context(), testClaim(fmt.Sprintf("d%d", i))); err == nil {
					granted.Add(1)
				} else if errors.Is(err, errClosed) {
					refused.Add(1)
				} else {
					t.Error(err)
				}
			})
		}
		for range 2 {
			if err := m.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		wg.Wait()
		if _, err := m.Claim(t.Context(), testClaim("late")); !errors.Is(err, errClosed) {
			t.Errorf("Claim after Close: %v", err)
		}
		if granted.Load()+refused.Load() != 500 {
			t.Errorf("%d granted, %d refused", granted.Load(), refused.Load())
		}
		if path == "" {
			continue
		}
		list, err := openTest(t, MemoryOptions{Path: path}).Devices(t.Context(), "", 1000)
		if err != nil || len(list) != int(granted.Load()) {
			t.Errorf("%d devices are kept of %d granted, %v", len(list), granted.Load(), err)
		}
	}
}

// TestWriteFails: what cannot be written has not happened, and is not forgotten
// when it may have reached the file nevertheless.
func TestWriteFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	var log strings.Builder
	m := openTest(t, MemoryOptions{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	cam := mustClaim(t, m, testClaim("cam"))
	before, _ := m.ByDevice(t.Context(), "cam")
	good := m.store.db
	m.store.db = &bbolt.DB{} // not open
	for range 2 {
		if _, err := m.Claim(t.Context(), testClaim("door")); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Claim: %v", err)
		}
		if err := m.Release(t.Context(), cam.Holder, time.Hour, "bye"); err == nil {
			t.Error("Release was carried out")
		}
	}
	if after, err := m.ByDevice(t.Context(), "cam"); err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("record %+v, %v, want %+v", after, err, before)
	}
	if _, err := m.ByDevice(t.Context(), "door"); !errors.Is(err, ErrUnknown) {
		t.Errorf("ByDevice: %v", err)
	}
	m.store.db = good
	// As if the failed write had got there.
	err := good.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDevices).Put([]byte("door"), []byte(`{"label":"l-door","generation":1,"until_ms":9e15}`))
	})
	if err != nil {
		t.Fatal(err)
	}
	thief := testClaim("thief")
	thief.Label = "l-door"
	mustClaim(t, m, thief)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openTest(t, MemoryOptions{Path: path})
	if r, err := m.ByLabel(t.Context(), "l-door"); err != nil || r.Device != "thief" {
		t.Errorf("ByLabel = %+v, %v", r, err)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || strings.Count(log.String(), "level=INFO") != 1 {
		t.Errorf("log, want one error and one info:\n%s", log.String())
	}
}

func TestIDs(t *testing.T) {
	var s ids
	var model []string
	for step := range 30000 {
		id := fmt.Sprintf("%d", rand.IntN(4000))
		at, found := slices.BinarySearch(model, id)
		// First it grows, then it shrinks.
		if add := rand.IntN(30000) > step; add {
			s.add(id)
			if !found {
				model = slices.Insert(model, at, id)
			}
		} else {
			s.remove(id)
			if found {
				model = slices.Delete(model, at, at+1)
				found = false
			}
		}
		if step%100 > 0 {
			continue
		}
		at, found = slices.BinarySearch(model, id)
		if found {
			at++
		}
		n := rand.IntN(1000)
		if got, want := s.after(nil, id, n), model[at:min(at+n, len(model))]; !slices.Equal(got, want) {
			t.Fatalf("step %d: after(%s, %d) = %v, want %v", step, id, n, got, want)
		}
	}
	if got := s.after(nil, "", 10000); !slices.Equal(got, model) {
		t.Errorf("%d ids, want %d", len(got), len(model))
	}
}

// fill claims that many devices, all at once.
func fill(t testing.TB, m *Memory, devices int) {
	t.Helper()
	if err := m.Beat(t.Context(), Node{NodeRef: NodeRef{"n1", "e1"}}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 1000 {
		wg.Go(func() {
			for i := w; i < devices; i += 1000 {
				mustClaim(t, m, testClaim(fmt.Sprintf("device-%06d", i)))
			}
		})
	}
	wg.Wait()
}

func TestLargeFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("claims 100,000 devices")
	}
	fleet := 100_000
	if raceEnabled {
		fleet /= 5 // it is the size that is tried, and the detector makes it slow
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	m := openTest(t, MemoryOptions{Path: path})
	begin := time.Now()
	fill(t, m, fleet)
	t.Logf("%d claims: %v", fleet, time.Since(begin))
	begin = time.Now()
	for range 100 {
		page, err := m.Devices(t.Context(), fmt.Sprintf("device-%06d", rand.IntN(fleet-1000)), 100)
		if err != nil || len(page) != 100 {
			t.Fatalf("%d records, %v", len(page), err)
		}
	}
	d := time.Since(begin) / 100
	t.Logf("a page of 100: %v", d)
	if d > 10*time.Millisecond {
		t.Errorf("a page took %v", d)
	}
	begin = time.Now()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	m = openTest(t, MemoryOptions{Path: path})
	t.Logf("close and reopen: %v, the file has %d MiB", time.Since(begin), info.Size()>>20)
	if page, err := m.Devices(t.Context(), "", 2*fleet); err != nil || len(page) != fleet {
		t.Errorf("%d devices, %v", len(page), err)
	}
}

func TestByLabelAllocates(t *testing.T) {
	m := openTest(t, MemoryOptions{})
	fill(t, m, 10)
	n := testing.AllocsPerRun(1000, func() {
		if _, err := m.ByLabel(t.Context(), "l-device-000003"); err != nil {
			t.Error(err)
		}
	})
	if n > 1 {
		t.Errorf("ByLabel allocates %v times", n)
	}
}

// BenchmarkByLabel is the visitors' path, with as many at once as there are
// processors, alone and while devices come.
func BenchmarkByLabel(b *testing.B) {
	for _, storm := range []bool{false, true} {
		b.Run(fmt.Sprintf("storm=%v", storm), func(b *testing.B) {
			m := openTest(b, MemoryOptions{Path: filepath.Join(b.TempDir(), "registry.db")})
			fill(b, m, 10_000)
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			for w := range 64 {
				wg.Go(func() {
					for i := w; storm && ctx.Err() == nil; i = (i + 64) % 10_000 {
						_, _ = m.Claim(ctx, testClaim(fmt.Sprintf("device-%06d", i))) // fails with ctx, at the end
					}
				})
			}
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := m.ByLabel(b.Context(), "l-device-001234"); err != nil {
						b.Error(err)
						return
					}
				}
			})
			cancel()
			wg.Wait()
		})
	}
}

// BenchmarkClaim is a device that comes back, one at a time and as part of a
// storm, into a file.
func BenchmarkClaim(b *testing.B) {
	for _, callers := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			m := openTest(b, MemoryOptions{Path: filepath.Join(b.TempDir(), "registry.db")})
			fill(b, m, 10_000)
			var next atomic.Int64
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if _, err := m.Claim(b.Context(), testClaim(fmt.Sprintf("device-%06d", i%10_000))); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
