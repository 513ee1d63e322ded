"""A small object store for tests, over HTTP: what TensorStore, gcsfs and s3fs ask of Google's and of Amazon's.

No credentials are looked at. Objects are in memory; their names are `BUCKET/KEY`.
"""

import email.utils
import functools
import hashlib
import http.server
import itertools
import json
import os
import re
import threading
import time
import urllib.parse
import xml.sax.saxutils

BOUNDARY = re.compile(rb'boundary="?([^";]+)"?')


class Store:
    """The objects, and the addresses at which they are served.

    Attributes:
        objects: Content by `BUCKET/KEY`.
        asked: Methods and paths of all requests.
        refuse: Tells of a method and path with query whether it is answered with 403.
    """

    def __init__(self, *buckets):
        self.buckets, self.objects, self.facts = set(buckets), {}, {}
        self.uploads, self.asked, self.refuse = {}, [], lambda method, path: False
        self._lock, self._generations = threading.Lock(), itertools.count(1)
        self._server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), type('Bound', (Handler,), {'store': self})
        )
        self._server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def environment(self):
        """Variables that lead all libraries here."""
        return {
            'STORAGE_EMULATOR_HOST': self.url,
            'TENSORSTORE_GCS_HTTP_URL': self.url,
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
            'FSSPEC_GCS_TOKEN': 'anon',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
            'NO_GCE_CHECK': 'true',
            'AWS_ENDPOINT_URL': self.url,
            'AWS_ACCESS_KEY_ID': 'key',
            'AWS_SECRET_ACCESS_KEY': 'secret',
            'AWS_DEFAULT_REGION': 'us-east-1',
            'AWS_EC2_METADATA_DISABLED': 'true',
        }

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def put(self, name, content, expected=None):
        """Puts an object; returns its facts, None where it has another generation than is expected."""
        with self._lock:
            if expected is not None and self.facts.get(name, {}).get('generation', 0) != expected:
                return None
            self.objects[name] = bytes(content)
            self.facts[name] = {'generation': next(self._generations), 'time': time.time()}
            return self.facts[name]

    def delete(self, name):
        with self._lock:
            self.facts.pop(name, None)
            return self.objects.pop(name, None) is not None

    def listed(self, bucket, prefix, delimiter):
        """Names of the objects, and of the folders, whose keys begin so."""
        with self._lock:
            keys = sorted(
                name[len(bucket) + 1 :] for name in self.objects if name.startswith(f'{bucket}/{prefix}')
            )
        files, folders = [], dict()
        for key in keys:
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders[prefix + rest.split(delimiter)[0] + delimiter] = None
            else:
                files.append(key)
        return files, list(folders)

    def etag(self, name):
        return hashlib.md5(self.objects[name], usedforsecurity=False).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests in either dialect."""

    store: Store
    protocol_version = 'HTTP/1.1'

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b'', headers=None, kind='application/json'):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        given = {'Content-Type': kind, 'Content-Length': str(len(body))} | (headers or {})
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def content(self, name, headers):
        """Answers with an object, or the part of it that is asked for."""
        whole = self.store.objects[name]
        match = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        kind = 'application/octet-stream'
        if not match or match[1] == match[2] == '':
            return self.answer(200, whole, headers, kind)
        first = int(match[1]) if match[1] else max(len(whole) - int(match[2]), 0)
        last = min(int(match[2]) if match[1] and match[2] else len(whole) - 1, len(whole) - 1)
        if first >= len(whole):
            return self.answer(416, b'', {'Content-Range': f'bytes */{len(whole)}'})
        part = whole[first : last + 1]
        return self.answer(206, part, headers | {'Content-Range': f'bytes {first}-{last}/{len(whole)}'}, kind)

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def body(self):
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = []
        while size := int(self.rfile.readline().split(b';')[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def serve(self):
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        body = self.body()
        path = urllib.parse.unquote(address.path)
        self.store.asked.append((self.command, path))
        if self.store.refuse(self.command, urllib.parse.unquote(self.path)):
            return self.answer(403, {'error': {'code': 403, 'message': 'no access'}})
        if re.match(r'/(upload/|download/)?storage/v1/b', address.path):
            return self.google(address.path, query, body)
        return self.amazon(path, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    # --- Google's JSON ---

    def google(self, path, query, body):
        parts = re.fullmatch(r'/(?:upload/|download/)?storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?', path)
        bucket, key = parts[1], parts[2]
        if bucket not in self.store.buckets:
            return self.answer(
                404, {'error': {'code': 404, 'message': 'The specified bucket does not exist.'}}
            )
        if not re.search(r'/o(/|$)', path):
            return self.answer(200, {'kind': 'storage#bucket', 'name': bucket, 'id': bucket})
        if path.startswith('/upload/'):
            return self.google_upload(bucket, query, body)
        if key is None:
            files, folders = self.store.listed(bucket, query.get('prefix', ''), query.get('delimiter', ''))
            items = [self.google_facts(f'{bucket}/{name}') for name in files]
            return self.answer(200, {'kind': 'storage#objects', 'items': items, 'prefixes': folders})
        if '/rewriteTo/' in key:
            key, _, target = key.partition('/rewriteTo/b/')
            to = '/'.join(map(urllib.parse.unquote, target.split('/o/')))
            self.store.put(to, self.store.objects[f'{bucket}/{urllib.parse.unquote(key)}'])
            return self.answer(200, {'done': True, 'resource': self.google_facts(to)})
        if '/moveTo/o/' in key:
            old, new = (f'{bucket}/{urllib.parse.unquote(part)}' for part in key.split('/moveTo/o/'))
            self.store.put(new, self.store.objects[old])
            self.store.delete(old)
            return self.answer(200, self.google_facts(new))
        name = f'{bucket}/{urllib.parse.unquote(key)}'
        if name not in self.store.objects:
            return self.answer(404, {'error': {'code': 404, 'message': f'No such object: {name}'}})
        if self.command == 'DELETE':
            self.store.delete(name)
            return self.answer(204)
        if query.get('alt') == 'media':
            facts = self.google_facts(name)
            return self.content(name, {'X-Goog-Generation': facts['generation'], 'ETag': facts['etag']})
        return self.answer(200, self.google_facts(name))

    def google_facts(self, name):
        bucket, _, key = name.partition('/')
        facts = self.store.facts[name]
        at = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(facts['time']))
        media = (
            f'{self.store.url}/download/storage/v1/b/{bucket}/o/{urllib.parse.quote(key, safe="")}?alt=media'
        )
        return {
            'kind': 'storage#object',
            'name': key,
            'bucket': bucket,
            'size': str(len(self.store.objects[name])),
            'generation': str(facts['generation']),
            'metageneration': '1',
            'etag': self.store.etag(name),
            'timeCreated': at,
            'updated': at,
            'mediaLink': media,
        }

    def google_upload(self, bucket, query, body):
        name, content = query.get('name'), body
        if query.get('uploadType') == 'resumable' and 'upload_id' not in query:
            name = name or json.loads(body)['name']
            self.store.uploads[name] = b''
            where = f'{self.store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id=1&name='
            return self.answer(200, headers={'Location': where + urllib.parse.quote(name, safe='')})
        if 'upload_id' in query:
            content = self.store.uploads[name] = self.store.uploads[name] + body
            if self.headers.get('Content-Range', '').endswith('/*'):
                return self.answer(308, headers={'Range': f'bytes=0-{len(content) - 1}'})
        if query.get('uploadType') == 'multipart':
            boundary = BOUNDARY.search(self.headers['Content-Type'].encode())[1]
            described, content = body.split(b'--' + boundary)[1:3]
            name = json.loads(re.split(rb'\r?\n\r?\n', described, maxsplit=1)[1])['name']
            content = re.split(rb'\r?\n\r?\n', content, maxsplit=1)[1]
            content = content.removesuffix(b'\n').removesuffix(b'\r')
        expected = query.get('ifGenerationMatch')
        put = self.store.put(f'{bucket}/{name}', content, None if expected is None else int(expected))
        if put is None:
            return self.answer(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
        return self.answer(200, self.google_facts(f'{bucket}/{name}'))

    # --- Amazon's XML ---

    def amazon(self, path, query, body):
        bucket, _, key = path.lstrip('/').partition('/')
        name = f'{bucket}/{key}'
        if bucket not in self.store.buckets:
            return self.answer(404, b'<Error><Code>NoSuchBucket</Code></Error>', kind='application/xml')
        if not key and 'delete' in query:
            keys = re.findall(r'<Key>(.*?)</Key>', body.decode())
            for each in keys:
                self.store.delete(f'{bucket}/{xml.sax.saxutils.unescape(each)}')
            return self.answer(200, b'<DeleteResult></DeleteResult>', kind='application/xml')
        if not key and self.command == 'HEAD':
            return self.answer(200, headers={'x-amz-bucket-region': 'us-east-1'})
        if not key:
            return self.answer(200, self.amazon_list(bucket, query).encode(), kind='application/xml')
        if self.command == 'PUT':
            source = self.headers.get('x-amz-copy-source')
            if source:
                body = self.store.objects[urllib.parse.unquote(source).lstrip('/')]
            self.store.put(name, body)
            etag = self.store.etag(name)
            if source:
                text = f'<CopyObjectResult><ETag>"{etag}"</ETag></CopyObjectResult>'
                return self.answer(200, text.encode(), kind='application/xml')
            return self.answer(200, headers={'ETag': f'"{etag}"'})
        if self.command == 'DELETE':
            self.store.delete(name)
            return self.answer(204)
        if name not in self.store.objects:
            return self.answer(404, b'<Error><Code>NoSuchKey</Code></Error>', kind='application/xml')
        etag = f'"{self.store.etag(name)}"'
        if self.headers.get('If-None-Match') == etag:
            return self.answer(304, headers={'ETag': etag})
        if self.headers.get('If-Match', etag) != etag:
            return self.answer(412)
        at = email.utils.formatdate(self.store.facts[name]['time'], usegmt=True)
        return self.content(name, {'ETag': etag, 'Last-Modified': at})

    def amazon_list(self, bucket, query):
        encoding = '<EncodingType>url</EncodingType>' if query.get('encoding-type') == 'url' else ''

        def safe(text):
            text = urllib.parse.quote(text) if encoding else text
            return xml.sax.saxutils.escape(text)

        files, folders = self.store.listed(bucket, query.get('prefix', ''), query.get('delimiter', ''))
        rows = []
        for key in files:
            name = f'{bucket}/{key}'
            at = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(self.store.facts[name]['time']))
            rows.append(
                f'<Contents><Key>{safe(key)}</Key><LastModified>{at}</LastModified><ETag>"{self.store.etag(name)}"'
                f'</ETag><Size>{len(self.store.objects[name])}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            )
        rows += [f'<CommonPrefixes><Prefix>{safe(folder)}</Prefix></CommonPrefixes>' for folder in folders]
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
            f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name><KeyCount>{len(rows)}</KeyCount>'
            f'<IsTruncated>false</IsTruncated>{encoding}{"".join(rows)}</ListBucketResult>'
        )


@functools.cache
def serve():
    """Returns the store of this process, with a bucket 'bucket', to which all libraries are led from now on."""
    import fsspec

    store = Store('bucket')
    os.environ.update(store.environment())
    fsspec.config.set_conf_env(fsspec.config.conf)
    return store
