package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

func managers() []Manager { return []Manager{scm{}} }

func running() string { return "windows" }

// scm is the service control manager.
type scm struct{}

func (scm) Name() string { return "windows" }
func (scm) Log() string {
	return "Get-EventLog -LogName Application -Source " + Name + " -Newest 20 (PowerShell)"
}

// account has few rights, and a network.
const account = `NT AUTHORITY\LocalService`

func (scm) Describe(s Spec) (path, text string, err error) {
	user := s.User
	if user == "" {
		user = account
	}
	line := windows.ComposeCommandLine(append([]string{s.Program}, s.Args...))
	return "service " + Name, fmt.Sprintf("command: %s\naccount: %s\nstart:   automatic\n", line, user), nil
}

// with calls f with the service, if it is there.
func with(f func(m *mgr.Mgr, s *mgr.Service) error) error {
	m, err := mgr.Connect()
	if err != nil {
		return administrator(err)
	}
	defer func() { _ = m.Disconnect() }() // nothing depends on it
	s, err := m.OpenService(Name)
	switch {
	case errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST):
		return f(m, nil)
	case err != nil:
		return administrator(err)
	}
	defer s.Close()
	return administrator(f(m, s))
}

func administrator(err error) error {
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return fmt.Errorf("%w: an administrator's console is needed", err)
	}
	return err
}

func (scm) Install(s Spec) error {
	user := s.User
	if user == "" {
		user = account
	}
	return with(func(m *mgr.Mgr, old *mgr.Service) error {
		config := mgr.Config{
			DisplayName: Name, Description: description, ServiceStartName: user,
			ServiceType: windows.SERVICE_WIN32_OWN_PROCESS, StartType: mgr.StartAutomatic, ErrorControl: mgr.ErrorNormal,
		}
		service := old
		if old == nil {
			made, err := m.CreateService(Name, s.Program, config, s.Args...)
			if err != nil {
				return err
			}
			defer made.Close()
			service = made
		} else {
			config.BinaryPathName = windows.ComposeCommandLine(append([]string{s.Program}, s.Args...))
			if err := old.UpdateConfig(config); err != nil {
				return err
			}
		}
		_ = eventlog.Remove(Name) // of before
		without := eventlog.InstallAsEventCreate(Name, eventlog.Info|eventlog.Warning|eventlog.Error)
		if without != nil {
			without = fmt.Errorf("installed, but without a log of its own: %w", without)
		}
		if err := startAgain(service); err != nil {
			return errors.Join(without, fmt.Errorf("installed, but nothing starts it again after a failure: %w", err))
		}
		return without
	})
}

// startAgain has the service started again whenever it fails.
func startAgain(s *mgr.Service) error {
	again := mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: 10 * time.Second}
	if err := s.SetRecoveryActions([]mgr.RecoveryAction{again, again, again}, 3600); err != nil {
		return err
	}
	return s.SetRecoveryActionsOnNonCrashFailures(true)
}

func (m scm) Uninstall() error {
	return with(func(_ *mgr.Mgr, s *mgr.Service) error {
		if s == nil {
			return ErrAbsent
		}
		if err := stop(s); err != nil {
			return err
		}
		_ = eventlog.Remove(Name) // the log can still be read
		return s.Delete()
	})
}

func (scm) Start() error {
	return with(func(_ *mgr.Mgr, s *mgr.Service) error {
		if s == nil {
			return ErrAbsent
		}
		err := s.Start()
		if errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return nil
		}
		return err
	})
}

func (scm) Stop() error {
	return with(func(_ *mgr.Mgr, s *mgr.Service) error {
		if s == nil {
			return ErrAbsent
		}
		return stop(s)
	})
}

// stopTime is how long a stop may take: visitors get some.
const stopTime = 30 * time.Second

// stop waits until the service has stopped.
func stop(s *mgr.Service) error {
	status, err := s.Control(svc.Stop)
	if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return nil
	}
	for limit := time.Now().Add(stopTime); err == nil && status.State != svc.Stopped; status, err = s.Query() {
		if time.Now().After(limit) {
			return fmt.Errorf("it has not stopped within %v", stopTime)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (scm) Status() (state State, more string, err error) {
	state = Absent
	err = with(func(_ *mgr.Mgr, s *mgr.Service) error {
		if s == nil {
			return nil
		}
		state = Stopped
		status, err := s.Query()
		if err == nil && status.State != svc.Stopped {
			state = Running
			more = fmt.Sprintf("process %d", status.ProcessId)
		}
		return err
	})
	return state, more, err
}

// asService tells whether the service control manager started this process: also that
// of Wine, which is in session 1 and no manager to svc.IsWindowsService.
func asService() bool {
	if inside, err := svc.IsWindowsService(); err == nil && inside {
		return true
	}
	all, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return false
	}
	defer func() { _ = windows.CloseHandle(all) }() // nothing depends on it
	names, parent := make(map[uint32]string), uint32(0)
	p := windows.ProcessEntry32{Size: uint32(unsafe.Sizeof(windows.ProcessEntry32{}))}
	for err = windows.Process32First(all, &p); err == nil; err = windows.Process32Next(all, &p) {
		names[p.ProcessID] = windows.UTF16ToString(p.ExeFile[:])
		if p.ProcessID == windows.GetCurrentProcessId() {
			parent = p.ParentProcessID
		}
	}
	return strings.EqualFold(names[parent], "services.exe")
}

// Run calls program: as a service, if the service control manager started this
// process, with a context that ends when it says so and a log that is the system's.
func Run(log io.Writer, program func(ctx context.Context, log io.Writer) int) int {
	if !asService() {
		return program(context.Background(), log)
	}
	if events, err := eventlog.Open(Name); err == nil {
		defer events.Close()
		log = eventWriter{events}
	}
	h := &handler{program: program, log: log, status: 1}
	if err := svc.Run(Name, h); err != nil {
		fmt.Fprintf(log, "level=ERROR service: %v\n", err)
	}
	return h.status
}

type handler struct {
	program func(ctx context.Context, log io.Writer) int
	log     io.Writer
	status  int
}

// Execute is svc.Handler's.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan int, 1)
	go func() { ended <- h.program(ctx, h.log) }()
	now := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	status <- now
	for {
		select {
		case h.status = <-ended:
			return true, uint32(h.status)
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- now
			case svc.Stop, svc.Shutdown:
				now = svc.Status{State: svc.StopPending, WaitHint: uint32(stopTime.Milliseconds())}
				status <- now
				cancel()
			}
		}
	}
}

// eventWriter makes an event of each write: a line of the log.
type eventWriter struct{ events *eventlog.Log }

func (w eventWriter) Write(p []byte) (int, error) {
	const id = 1 // of all events: they tell their own story
	text := strings.TrimRight(string(p), "\r\n")
	report := w.events.Info
	switch {
	case bytes.Contains(p, []byte("level=ERROR")), bytes.Contains(p, []byte(`"level":"ERROR"`)):
		report = w.events.Error
	case bytes.Contains(p, []byte("level=WARN")), bytes.Contains(p, []byte(`"level":"WARN"`)):
		report = w.events.Warning
	}
	if err := report(id, text); err != nil {
		return 0, err
	}
	return len(p), nil
}

var _ Manager = scm{}
