// A real OpenID Connect provider on a free loopback port, for tests; prints its issuer on one line.
// `POST /test/rotate` gives it new keys, `POST /test/break` and `/test/mend` have it answer its key set with 503.
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import * as library from 'oidc-provider';

const Provider = library.Provider ?? library.default;
let issuer;
let handle;
let broken = false;
let fetched = 0;

function provider(number) {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const keys = [{ ...privateKey.export({ format: 'jwk' }), kid: `es-${number}`, use: 'sig', alg: 'ES256' }];
  const made = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: ['for tests only'] },
    clients: [
      {
        client_id: 'robot', client_secret: 'robot-secret', grant_types: ['client_credentials'], redirect_uris: [],
        response_types: [], id_token_signed_response_alg: 'ES256',
      },
      {
        client_id: 'cli', token_endpoint_auth_method: 'none', application_type: 'native',
        id_token_signed_response_alg: 'ES256',
        grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
        redirect_uris: ['http://127.0.0.1/callback'],
      },
    ],
    scopes: ['openid', 'offline_access', 'api'],
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: () => ({ groups: ['nexus-readers', 'unknown'], tid: 'acme' }),
    features: {
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      devInteractions: { enabled: true },
      dPoP: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:nexus',
        useGrantedResource: () => true,
        getResourceServerInfo: (_, resource) => ({
          scope: 'api', audience: resource, accessTokenTTL: 600, accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  });
  return made.callback();
}

const server = createServer((request, response) => {
  if (request.url.startsWith('/test/')) {
    if (request.url === '/test/rotate') handle = provider(Date.now());
    if (request.url === '/test/break') broken = true;
    if (request.url === '/test/mend') broken = false;
    response.end(String(fetched));
    return;
  }
  if (request.url === '/jwks') {
    fetched += 1;
    if (broken) {
      response.statusCode = 503;
      response.end();
      return;
    }
  }
  handle(request, response);
});
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  handle = provider(1);
  console.log(`issuer ${issuer}`);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));  // Never longer than the tests.
