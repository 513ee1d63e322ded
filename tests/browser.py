"""A headless Chromium that tests talk to through a pipe (its DevTools protocol), with nothing else to install."""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time

NAMES = (
    'chromium',
    'chromium-browser',
    'google-chrome',
    'google-chrome-stable',
    'chrome',
    'chrome-headless-shell',
)
# It reads from descriptor 3 and writes to 4.
LAUNCH = """if True:
    import fcntl, os, sys
    ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 5) for end in sys.argv[1:3]]
    for end, place in zip(ends, (3, 4)):
        os.dup2(end, place)
    os.execvp(sys.argv[3], sys.argv[3:])
"""
SECONDS = 60  # for an answer, on a busy machine


def find_chromium():
    """Returns the program, None where there is none; $CHROMIUM names one that is elsewhere."""
    return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser of its own, with all that it said and asked for.

    messages: what was written to the console, or went wrong. requests: every address that was asked for.
    """

    def __init__(self, program, folder):
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        options = [
            '--headless',
            '--no-sandbox',  # root has none
            '--disable-gpu',
            '--disable-dev-shm-usage',
            '--no-first-run',
            '--remote-debugging-pipe',
            f'--user-data-dir={folder}',
        ]
        line = [sys.executable, '-c', LAUNCH, str(commands), str(answers), program, *options]
        self._said = pathlib.Path(folder) / 'stderr.txt'
        with self._said.open('w') as said:
            self._process = subprocess.Popen(
                line, pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        os.close(commands)
        os.close(answers)
        self._number, self._read, self._session = 0, b'', None
        self.messages, self.requests, self._loaded = [], [], False
        target = self.ask('Target.createTarget', url='about:blank')['targetId']
        self._session = self.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for part in ('Page', 'Runtime', 'Log', 'Network'):
            self.ask(f'{part}.enable')

    def close(self):
        os.close(self._to)
        os.close(self._from)
        self._process.terminate()
        self._process.wait(SECONDS)

    def ask(self, method, **parameters):
        self._number += 1
        number = self._number
        message = {'id': number, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._to, json.dumps(message).encode() + b'\0')
        while (answer := self._next()).get('id') != number:
            self._note(answer)
        assert 'error' not in answer, f'{method}: {answer}'
        return answer['result']

    def _next(self):
        until = time.monotonic() + SECONDS
        while b'\0' not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
            assert ready, 'the browser does not answer'
            part = os.read(self._from, 1 << 20)
            assert part, f'the browser has ended: {self._said.read_text()[-500:]}'
            self._read += part
        message, _, self._read = self._read.partition(b'\0')
        return json.loads(message)

    def _note(self, event):
        method, told = event.get('method'), event.get('params', {})
        if method == 'Runtime.consoleAPICalled':
            self.messages.append((told['type'], told['args']))
        elif method == 'Runtime.exceptionThrown':
            self.messages.append(('exception', told['exceptionDetails']))
        elif method == 'Log.entryAdded':
            self.messages.append((told['entry']['level'], told['entry']['text']))
        elif method == 'Network.requestWillBeSent':
            self.requests.append(told['request']['url'])
        elif method == 'Page.loadEventFired':
            self._loaded = True

    def show(self, address, *, width=1280, height=900, theme='light'):
        """Opens a page in a window of a size in pixels."""
        self.ask(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.ask('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': theme}])
        self.messages, self.requests, self._loaded = [], [], False
        self.ask('Page.navigate', url=address)
        while not self._loaded:
            self._note(self._next())

    def run(self, code):
        """Returns the value of an expression in JavaScript."""
        result = self.ask('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result['exceptionDetails']
        return result['result'].get('value')

    def press(self, key):
        """Presses a key, as `Enter` or `Tab`."""
        code = {'Enter': 13, 'Tab': 9}[key]
        text = {'text': '\r'} if key == 'Enter' else {}
        self.ask(
            'Input.dispatchKeyEvent', type='keyDown', key=key, code=key, windowsVirtualKeyCode=code, **text
        )
        self.ask('Input.dispatchKeyEvent', type='keyUp', key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, *, whole=True):
        """Returns what is seen (or the whole page) as PNG."""
        return base64.b64decode(self.ask('Page.captureScreenshot', captureBeyondViewport=whole)['data'])
