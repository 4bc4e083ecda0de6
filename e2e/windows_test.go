package e2e

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// wine runs programs for Windows, as if each test had a computer of its own.
type wine struct {
	program string
	env     []string
}

// newWine sets a computer up, which runs until the test ends; without Wine the test is
// skipped.
func newWine(t *testing.T) *wine {
	t.Helper()
	program, err := exec.LookPath("wine")
	server := "/usr/lib/wine/wineserver" // where Debian has it
	if found, err := exec.LookPath("wineserver"); err == nil {
		server = found
	}
	if _, serverErr := os.Stat(server); err != nil || serverErr != nil || runtime.GOARCH != "amd64" {
		t.Skip("there is no Wine for amd64 (Debian: apt-get install --no-install-recommends wine wine64)")
	}
	home := t.TempDir()
	w := &wine{program: program, env: []string{
		"HOME=" + home, "WINEPREFIX=" + filepath.Join(home, "wine"), "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml,winemenubuilder.exe=",
	}}
	in, keyboard := io.Pipe()
	console := harness.Run(t, harness.Command{Name: "wine", Args: []string{program, "cmd"}, Env: w.env, Stdin: in}) // it shuts down with its last program
	t.Cleanup(func() {
		keyboard.Close()
		end := exec.Command(server, "--kill")
		end.Env = append(os.Environ(), w.env...)
		if err := end.Run(); err != nil {
			t.Errorf("wineserver: %v", err)
		}
	})
	if _, err := io.WriteString(keyboard, "echo It is up.\r\n"); err != nil {
		t.Fatal(err)
	}
	console.WaitStdout(t, 0, 2*time.Minute, "It is up.")
	library := filepath.Join(home, "wine/drive_c/windows/system32/bcryptprimitives.dll")
	if _, err := os.Stat(library); err != nil { // before Wine 9
		writeFile(t, library, string(forwarder("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036")))
	}
	return w
}

// run runs a program to its end. It writes into files: what it starts and leaves would keep
// a pipe open.
func (w *wine) run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	status, _, _ = harness.RunToEnd(t, 2*time.Minute, harness.Command{
		Name: args[0], Args: append([]string{"sh", "-c", `exec "$@" >out 2>err`, "sh", w.program}, args...), Env: w.env, Dir: dir,
	})
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	return status, read("out"), read("err")
}

// forwarder is a library for Windows on amd64 that has one function, which is another
// library's.
func forwarder(library, name, target string) []byte {
	const page, sector = 0x1000, 0x200
	names := library + "\x00" + name + "\x00" + target + "\x00"
	const head, entries = 40, 10 // of an export directory; addresses of function and name, and an ordinal
	at := uint32(page + head + entries)
	exports := make([]byte, head+entries, sector)
	for i, v := range []uint32{
		3: at, 4: 1, 5: 1, 6: 1, 7: page + head, 8: page + head + 4, 9: page + head + 8,
		10: at + uint32(len(library)+len(name)+2), 11: at + uint32(len(library)+1),
	} {
		binary.LittleEndian.PutUint32(exports[4*i:], v)
	}
	exports = append(exports, names...)

	var b bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // of a type that has no size
		}
	}
	dos := [64]byte{0: 'M', 1: 'Z', 60: 64}
	write(dos)
	write([4]byte{'P', 'E'})
	optional := pe.OptionalHeader64{
		Magic: 0x20b, ImageBase: 0x180000000, SectionAlignment: page, FileAlignment: sector, MajorOperatingSystemVersion: 6, MajorSubsystemVersion: 6,
		SizeOfImage: 2 * page, SizeOfHeaders: sector, SizeOfInitializedData: sector, Subsystem: pe.IMAGE_SUBSYSTEM_WINDOWS_CUI,
		DllCharacteristics: pe.IMAGE_DLLCHARACTERISTICS_NX_COMPAT, NumberOfRvaAndSizes: 16,
	}
	optional.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_EXPORT] = pe.DataDirectory{VirtualAddress: page, Size: uint32(len(exports))}
	write(pe.FileHeader{
		Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: 1, SizeOfOptionalHeader: uint16(binary.Size(optional)),
		Characteristics: pe.IMAGE_FILE_DLL | pe.IMAGE_FILE_EXECUTABLE_IMAGE | pe.IMAGE_FILE_LARGE_ADDRESS_AWARE,
	})
	write(optional)
	write(pe.SectionHeader32{
		Name: [8]uint8{'.', 'e', 'd', 'a', 't', 'a'}, VirtualSize: uint32(len(exports)), VirtualAddress: page, SizeOfRawData: sector, PointerToRawData: sector,
		Characteristics: pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ,
	})
	write(make([]byte, sector-b.Len()))
	write(exports[:sector])
	return b.Bytes()
}

// TestWindows runs the agent for Windows, as a program and as a service, in Wine.
func TestWindows(t *testing.T) {
	t.Parallel()
	w := newWine(t)
	agent := filepath.Join(t.TempDir(), "iottunnel-agent.exe")
	status, out, errs := harness.RunToEnd(t, 10*time.Minute, harness.Command{
		Name: "go build", Args: []string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "./agent/cmd/iottunnel-agent"},
		Dir: "..", Env: []string{"GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0"},
	})
	if status != 0 {
		t.Fatalf("go build: %d\n%s%s", status, out, errs)
	}
	if status, out, errs := w.run(t, agent, "version"); status != 0 || !strings.Contains(out, "windows/amd64") {
		t.Fatalf("version: %d, %q, %s", status, out, errs)
	}
	for _, k := range harness.Kinds {
		if k.Name() == "plain" || k.Name() == "tls" {
			t.Run(k.Name(), func(t *testing.T) { onWindows(t, harness.Shared(t, k), w, agent) })
		}
	}
}

func onWindows(t *testing.T, f harness.Face, w *wine, agent string) {
	o := harness.StartOrigin(t)
	a := harness.StartAgent(t, f, harness.AgentSetup{
		Forwards: []string{"80=" + o.Addr}, Command: append([]string{"env"}, append(w.env, w.program, agent)...),
	})
	s := &site{face: f, origin: o, agent: a, host: a.UpWithin(t, time.Minute).Hostname(t, 80), client: harness.Visitor(t, f, false)}
	s.mustServe(t)
	if r := s.get(t, "/bytes?n=1048576"); len(r.body) != 1<<20 {
		t.Errorf("download: %d bytes", len(r.body))
	}
	if err := echoes(s.openSocket(t), 2, "hello from Windows"); err != nil {
		t.Error(err)
	}
	a.Kill()

	service := func(want int, says string, args ...string) {
		t.Helper()
		status, out, errs := w.run(t, append([]string{agent, "service"}, args...)...)
		if status != want || !strings.Contains(out+errs, says) {
			t.Fatalf("service %q: %d, want %d and %q\n%s%s", args, status, want, says, out, errs)
		}
	}
	d := f.NewDevice(t)
	before := harness.StartAgent(t, f, harness.AgentSetup{Device: d, Forwards: []string{"80=" + o.Addr}})
	s.host = before.Up(t).Hostname(t, 80) // which the device keeps
	before.Stop(t, 30*time.Second)
	token := writeFile(t, filepath.Join(t.TempDir(), "token"), d.Token)
	install := []string{"install", "--server", f.Servers()[0], "--device", d.ID, "--token-file", token, "--forward", "80=" + o.Addr}
	if ca := f.CAFile(); ca != "" {
		install = append(install, "--ca", ca)
	}
	service(4, "not installed", "status")
	service(1, "not installed", "start")
	service(1, "installed, but nothing starts it again after a failure", install...) // Wine's manager cannot
	service(3, "stopped", "status")
	harness.Eventually(t, time.Minute, "the service starts", func() error { // not while Wine itself does
		if status, _, errs := w.run(t, agent, "service", "start"); status != 0 {
			return errors.New(errs)
		}
		return nil
	})
	service(0, "started", "start")
	harness.Eventually(t, time.Minute, "the service serves", func() error {
		if r, err := try(s.client, request(t, "GET", s.url("/bytes?n=10"), nil)); err != nil || r.StatusCode != 200 {
			return fmt.Errorf("%v, %v", r, err)
		}
		return nil
	})
	service(0, "running (process ", "status")
	service(0, "stopped", "stop")
	if r := s.get(t, "/bytes?n=10"); r.code() != "device_offline" {
		t.Errorf("after stop: %v", r)
	}
	service(3, "stopped", "status")
	service(0, "stopped", "stop")
	service(0, "started", "start")
	service(0, "uninstalled", "uninstall")
	service(1, "not installed", "uninstall")
	service(4, "not installed", "status")
}
