"""Every way to ask for an edit, as patterns: ``(a|b|)`` stands for each alternative, the empty one included.

Korean patterns leave the verb's ending to ``~``: ``만들어~`` becomes 만들어 줘, 만들어줘, 만들어 주세요 and so on.
"""

from __future__ import annotations

HAIR_WORDS = {
    "black": ("black", "(검은색|검정색|까만색|흑발)"),
    "brown": ("(brown|chestnut)", "(갈색|밤색|갈색 머리)"),
    "blond": ("(blond|blonde|golden)", "(금발|금색|노란색|금발 머리)"),
    "red": ("(red|ginger)", "(빨간색|붉은색|빨강|빨간 머리)"),
    "white": ("(white|silver)", "(흰색|하얀색|은색|백발)"),
    "pink": ("pink", "(분홍색|핑크색|분홍|핑크)"),
    "blue": ("blue", "(파란색|파랑|푸른색|파란 머리)"),
    "green": ("green", "(초록색|녹색|초록|초록 머리)"),
    "purple": ("(purple|violet)", "(보라색|보라|보라 머리)"),
}
COLOUR_WORDS = {
    "red": ("red", "(빨간색|빨강|붉은색)"),
    "blue": ("blue", "(파란색|파랑|푸른색)"),
    "green": ("green", "(초록색|녹색|초록)"),
    "yellow": ("yellow", "(노란색|노랑)"),
    "black": ("black", "(검은색|검정색|까만색)"),
    "white": ("white", "(흰색|하얀색)"),
    "pink": ("pink", "(분홍색|핑크색|핑크)"),
    "purple": ("(purple|violet)", "(보라색|보라)"),
}
LANDSCAPE_WORDS = {
    "desert": ("(desert|desert landscape)", "사막"),
    "beach": ("(beach|seaside)", "(해변|바닷가)"),
    "night": ("(night sky|starry night|starry sky)", "(밤하늘|별이 빛나는 밤)"),
    "forest": ("(forest|woods)", "(숲|숲속)"),
}

HAIR_EN = (
    "(make|turn|dye|paint|color) (the|their|her|his|my) hair {0}",
    "(change|switch) (the|their|her|his|my) hair (color|) to {0}",
    "(give|get) (them|her|him|me|the person) {0} hair",
    "{0} hair",
    "(the|) hair (should be|in|to) {0}",
    "make it {0} hair",
    "(make|turn|dye|color) the fur {0}",
)
HAIR_KO = (
    (
        "(머리를|머리카락을|머리색을|머리 색깔을|머리|헤어를|털을|털 색깔을) {0}으로 "
        "(만들어~|바꿔~|해~|염색해~|염색|변경|바꾸기)"
    ),
    "(머리를|머리카락을|머리색을) {0}으로",
    "{0}으로 (만들어~|바꿔~|염색해~|염색)",
    "{0}으로 머리를 (바꿔~|염색해~)",
    "(머리|머리카락|머리색|털) {0}",
)
SHIRT_EN = (
    "(make|turn|paint|color) (the|their|her|his|my) (shirt|clothes|top|outfit) {0}",
    "change (the|their|her|his|my) (shirt|clothes|top|outfit) (color|) to {0}",
    "(a|wear a|put on a|give them a) {0} (shirt|top)",
    "{0} (shirt|clothes|top)",
)
SHIRT_KO = (
    "(옷을|옷 색깔을|옷색을|셔츠를|티셔츠를|상의를) {0}으로 (만들어~|바꿔~|해~|변경|바꾸기)",
    "{0} (옷|셔츠|티셔츠)(을|를) 입혀~",
    "(옷|셔츠|티셔츠) {0}으로",
    "{0} (옷|셔츠|티셔츠)",
)
BACKDROP_EN = (
    "(make|turn|paint|color) the background {0}",
    "(change|set) the background (color|) to {0}",
    "(use|give it|put) a {0} background",
    "{0} background",
    "the background (should be|in) {0}",
)
BACKDROP_KO = (
    "(배경을|배경색을|배경 색깔을|뒷배경을) {0}으로 (만들어~|바꿔~|해~|변경|바꾸기|칠해~)",
    "배경 {0}으로",
    "{0} 배경으로 (만들어~|바꿔~|해~|)",
    "{0} 배경",
)
LANDSCAPE_EN = (
    "(put|place|move) (them|her|him|me|it) (at|in) the {0}",
    "(change|set|turn|switch) the background (to|into) (a|the) {0}",
    "(make|use) the background (a|the) {0}",
    "{0} background",
    "(at|in) the {0}",
    "(use|give it) a {0} background",
)
LANDSCAPE_KO = (
    "(배경을|뒷배경을) {0}으로 (만들어~|바꿔~|해~|변경|바꾸기)",
    "{0}으로 (배경을|) (바꿔~|옮겨~|보내~)",
    "{0} 배경으로 (만들어~|바꿔~|해~|)",
    "{0} 배경",
)

ENGLISH: dict[str, tuple[str, ...]] = {
    "sunglasses-on": (
        "(put on|add|wear) (some|the|a pair of|) (sunglasses|shades|dark glasses)",
        "put (some|the|) (sunglasses|shades|dark glasses) on (them|her|him|me|it|the person|the cat)",
        "give (them|her|him|me|it) (some|a pair of|) (sunglasses|shades|dark glasses)",
        "with (sunglasses|shades|dark glasses)",
        "(make|let|have) (them|her|him|it) wear (sunglasses|shades|dark glasses)",
        "(sunglasses|shades) on",
        "(sunglasses|shades)",
    ),
    "sunglasses-off": (
        "(take off|remove|lose|delete) (the|their|her|his|) (sunglasses|shades|dark glasses|glasses)",
        "take (the|their|her|his) (sunglasses|shades|dark glasses|glasses) off",
        "(no|without|without the) (sunglasses|shades|dark glasses|glasses)",
        "(sunglasses|shades|glasses) off",
        "get rid of the (sunglasses|shades|glasses)",
    ),
    "beanie-on": (
        "(put on|add|wear) (a|the) (hat|beanie|knit hat|knitted hat|winter hat|woolly hat)",
        "put a (hat|beanie|knit hat|winter hat|woolly hat) on (them|her|him|me|it|the person|the cat)",
        "give (them|her|him|me|it) a (hat|beanie|knit hat|winter hat|woolly hat)",
        "with a (hat|beanie|knit hat|winter hat)",
        "(make|let|have) (them|her|him|it) wear a (hat|beanie|winter hat)",
        "(add hat|hat on|beanie on|beanie)",
    ),
    "cowboy-hat-on": (
        "(put on|add|wear) (a|the) (cowboy hat|cowboy's hat|stetson)",
        "put a (cowboy hat|stetson) on (them|her|him|me|it|the person|the cat)",
        "give (them|her|him|me|it) a (cowboy hat|stetson)",
        "with a (cowboy hat|stetson)",
        "(make|let|have) (them|her|him|it) wear a (cowboy hat|stetson)",
        "(add|) (cowboy hat|stetson)",
    ),
    "hat-off": (
        "(take off|remove|lose|delete) (the|their|her|his|) (hat|beanie|cowboy hat|cap)",
        "take (the|their|her|his) (hat|beanie|cowboy hat|cap) off",
        "(no|without a|without the|without) (hat|beanie|cowboy hat|cap)",
        "(hat|beanie|cowboy hat) off",
        "get rid of the (hat|beanie|cowboy hat|cap)",
    ),
    "flower-on": (
        "(add|put|stick|place) (a|one|the) (pink|) (flower|blossom) (in|on|into) (the|their|her|his|my) (hair|head)",
        "(add|put in|draw|wear) (a|one|the) (pink|) (flower|blossom)",
        "give (them|her|him|me|it) a (pink|) (flower|blossom)",
        "with a (pink|) (flower|blossom) (in the hair|)",
        "(add|) (flower|flowers|blossom)",
        "decorate (it|them|her|him|the hair) with a (flower|blossom)",
    ),
    "flower-off": (
        "(take off|take out|remove|lose|delete) (the|their|her|his|) (flower|blossom) (from the hair|)",
        "take (the|their|her|his) (flower|blossom) (off|out)",
        "(no|without a|without the|without) (flower|blossom)",
        "get rid of the (flower|blossom)",
        "(flower|blossom) off",
    ),
    "eyes-close": (
        "(close|shut) (the|their|her|his|my|both|its|) eyes",
        "(make|let|have) (them|her|him|it|the person|the cat) (close|shut) (their|her|his|its|the) eyes",
        "(with|) (closed|shut) eyes",
        "(the|) eyes (closed|shut)",
        "make the eyes (closed|shut)",
        "(make|let) (them|her|him|it) sleep",
    ),
    "eyes-open": (
        "open (the|their|her|his|my|both|its|) eyes",
        "(make|let|have) (them|her|him|it|the person|the cat) open (their|her|his|its|the) eyes",
        "(with|) open eyes",
        "(the|) eyes (open|opened)",
        "make the eyes open",
        "(wake|wake up) (them|her|him|it|the person|the cat)",
        "wake (them|her|him|it) up",
    ),
    "laugh": (
        "(make|let|have) (them|her|him|it|me|the person|the cat) (laugh|smile|grin|happy)",
        "(add|give them|give her|give him|give it) a (big|wide|happy|) (smile|laugh|grin)",
        "(laugh|smile|grin) (more|big|)",
        "(happy|laughing|smiling) (face|expression)",
        "(look|be) (happy|happier)",
        "make (them|her|him|it) look (happy|happier)",
    ),
    "serious": (
        "(make|let|have) (them|her|him|it|me|the person|the cat) (serious|neutral|stop smiling|stop laughing)",
        "(stop smiling|stop laughing|do not smile|don't smile|don't laugh)",
        "(remove|take away|delete) the (smile|laugh|grin)",
        "(no|without a) (smile|laugh|grin)",
        "(serious|neutral) (face|expression|mouth)",
        "(look|be) (serious|neutral)",
        "make (them|her|him|it) look (serious|neutral)",
    ),
    "western": (
        (
            "(turn|make|change) (it|this|the picture|the image|the photo|them|her|him) into a "
            "(western|western movie|western film|cowboy movie|cowboy film)"
        ),
        (
            "make (it|this|the picture|the image|the photo) (a|look like a|like a) "
            "(western|western movie|western film|cowboy movie|cowboy film)"
        ),
        "(in|into) the (wild west|old west)",
        "(western|wild west|old west|cowboy movie) (style|scene|look)",
        "(as|like|in) a (western|western movie|western film|cowboy movie|cowboy film)",
        "put (them|her|him|it|me) in (a western|the wild west|the old west|a cowboy movie)",
        "(western|western movie|wild west)",
    ),
    "illustration": (
        (
            "(draw|redraw|sketch) (it|this|the picture|the image|the photo|them|her|him) as "
            "(an illustration|a drawing|a comic|a cartoon)"
        ),
        (
            "(turn|make|change) (it|this|the picture|the image|the photo) into "
            "(an illustration|a drawing|a comic|a cartoon)"
        ),
        (
            "make (it|this|the picture|the image) "
            "(an illustration|a drawing|a comic|a cartoon"
            "|look like an illustration|look like a drawing|look like a comic)"
        ),
        "(illustration|drawing|comic|comic book|cartoon) (style|look)",
        "(as|like) (an illustration|a drawing|a comic|a cartoon)",
        "(illustrate|illustrate it|illustration)",
        "in the style of (an illustration|a drawing|a comic|a cartoon)",
    ),
    "humanise": (
        "(turn|make|change|transform) (the cat|the kitty|it|this cat|my cat) into a (person|human|human being)",
        "make (the cat|the kitty|it|this cat|my cat) (a person|a human|human|look human)",
        "(the cat|the kitty|it|this cat) as a (person|human|human being)",
        "(humanise|humanize|humanise the cat|humanize the cat|humanise it|humanize it)",
        "what would (the cat|the kitty|this cat|my cat) look like as a (person|human)",
        "(draw|show) (the cat|the kitty|it|this cat|my cat) as a (person|human|human being)",
        "(person|human) version (of the cat|of it|)",
        "if (the cat|the kitty|this cat|my cat) were a (person|human)",
    ),
}

KOREAN: dict[str, tuple[str, ...]] = {
    "sunglasses-on": (
        "(선글라스|썬글라스|색안경)(를|을|) (씌워~|추가해~|써~|끼워~|착용해~|넣어~|쓰게 해~|씌우기|추가)",
        "(선글라스|썬글라스|색안경) (쓴|낀) (모습으로|얼굴로) (만들어~|바꿔~|해~|)",
        "(눈에|얼굴에|고양이에게|사람에게) (선글라스|썬글라스)(를|) (씌워~|추가해~)",
        "(선글라스|썬글라스|색안경)",
    ),
    "sunglasses-off": (
        "(선글라스|썬글라스|색안경|안경)(를|을|) (벗겨~|빼~|없애~|지워~|제거해~|벗기기|제거|벗게 해~)",
        "(선글라스|썬글라스|색안경|안경) (없이|없는 모습으로|벗은 모습으로) (만들어~|바꿔~|해~|)",
    ),
    "beanie-on": (
        "(모자|비니|털모자|겨울 모자)(를|을|) (씌워~|추가해~|써~|쓰게 해~|넣어~|씌우기|추가)",
        "(모자|비니|털모자|겨울 모자)(를|) 쓴 (모습으로|얼굴로) (만들어~|바꿔~|해~|)",
        "(머리에|고양이에게|사람에게) (모자|비니|털모자)(를|) (씌워~|추가해~)",
    ),
    "cowboy-hat-on": (
        "(카우보이 모자|카우보이모자|카우보이 햇)(를|을|) (씌워~|추가해~|써~|쓰게 해~|넣어~|씌우기|추가)",
        "(카우보이 모자|카우보이모자)(를|) 쓴 (모습으로|얼굴로) (만들어~|바꿔~|해~|)",
        "(머리에|고양이에게|사람에게) (카우보이 모자|카우보이모자)(를|) (씌워~|추가해~)",
        "(카우보이 모자|카우보이모자)",
    ),
    "hat-off": (
        "(모자|비니|털모자|카우보이 모자)(를|을|) (벗겨~|빼~|없애~|지워~|제거해~|벗기기|제거|벗게 해~)",
        "(모자|비니|털모자|카우보이 모자) (없이|없는 모습으로|벗은 모습으로) (만들어~|바꿔~|해~|)",
    ),
    "flower-on": (
        (
            "(꽃|꽃을|꽃 한 송이|꽃 한 송이를|분홍 꽃|분홍색 꽃을|꽃 장식|꽃 장식을) "
            "(추가|추가해~|달아~|꽂아~|넣어~|그려~|달기)"
        ),
        "(머리에|귀에|머리 옆에) (꽃|꽃을|꽃 한 송이를) (추가해~|달아~|꽂아~|꽂기|추가)",
        "(꽃|꽃을) (단|꽂은) 모습으로 (만들어~|바꿔~|해~|)",
        "(꽃|꽃으로) 장식(해~|)",
    ),
    "flower-off": (
        "(꽃|꽃을|꽃 장식|꽃 장식을) (빼~|없애~|지워~|제거해~|떼어~|제거|떼기)",
        "(머리에서|귀에서) (꽃|꽃을) (빼~|없애~|제거해~|떼어~)",
        "꽃 (없이|없는 모습으로) (만들어~|바꿔~|해~|)",
    ),
    "eyes-close": (
        "(눈|눈을|두 눈을|양쪽 눈을) (감겨~|감게 해~|감아~|감기기|감기)",
        "눈(을|) 감은 (모습으로|얼굴로|상태로) (만들어~|바꿔~|해~|)",
        "(고양이|사람|얼굴) 눈(을|) (감겨~|감게 해~)",
        "(자는|잠든) (모습으로|얼굴로) (만들어~|바꿔~|해~|)",
    ),
    "eyes-open": (
        "(눈|눈을|두 눈을|양쪽 눈을) (뜨게 해~|떠~|뜨게 만들어~|뜨기)",
        "눈(을|) 뜬 (모습으로|얼굴로|상태로) (만들어~|바꿔~|해~|)",
        "(고양이|사람|얼굴) 눈(을|) (뜨게 해~|뜨게 만들어~)",
        "(깨어난|깬) (모습으로|얼굴로) (만들어~|바꿔~|해~|)",
        "(잠에서|) 깨워~",
    ),
    "laugh": (
        "(크게|활짝|환하게|) (웃게 해~|웃게 만들어~|웃어~|웃기)",
        "(웃는|활짝 웃는|환하게 웃는|행복한) (얼굴로|모습으로|표정으로) (만들어~|바꿔~|해~|)",
        "(미소를|웃음을) (추가해~|넣어~|추가)",
        "(웃는|행복한) (얼굴|표정)",
    ),
    "serious": (
        "(진지한|무표정한|심각한) (얼굴로|모습으로|표정으로) (만들어~|바꿔~|해~|)",
        "(무표정으로|진지하게) (만들어~|바꿔~|해~)",
        "(웃지 않게|웃음을 멈추게|미소를 멈추게) (해~|만들어~)",
        "(미소를|웃음을) (없애~|지워~|제거해~|제거)",
        "(무표정|진지한 표정|진지한 얼굴)",
    ),
    "western": (
        (
            "(서부 영화|서부영화|서부극|웨스턴 영화|웨스턴|카우보이 영화)(로|으로|처럼|풍으로|스타일로|느낌으로) "
            "(만들어~|바꿔~|해~|변환|바꾸기)"
        ),
        "(사진을|그림을|이미지를|이걸) (서부 영화|서부영화|서부극|카우보이 영화)(로|처럼|풍으로) (만들어~|바꿔~)",
        "(서부 영화|서부영화|서부극|서부 시대|웨스턴) (풍|스타일|느낌|장면)(으로|으로 만들어~|)",
        "(서부 영화화|서부영화로|서부극으로)",
    ),
    "illustration": (
        "(일러스트|일러스트레이션|만화|삽화)(로|처럼|풍으로|스타일로|느낌으로) (만들어~|바꿔~|그려~|해~|변환|바꾸기)",
        "(사진을|그림을|이미지를|이걸) (일러스트|만화|삽화)(로|처럼|풍으로) (만들어~|바꿔~|그려~)",
        "(일러스트화|일러스트화해~|만화화|일러스트|일러스트로|일러스트 스타일|만화 스타일|일러스트 풍|만화로)",
        "(일러스트|만화) (스타일|느낌)(으로|로) (만들어~|바꿔~|그려~)",
    ),
    "humanise": (
        (
            "(고양이를|이 고양이를|냥이를|얘를|우리 고양이를) (사람으로|인간으로|사람처럼) "
            "(만들어~|바꿔~|그려~|변신시켜~|변환|바꾸기)"
        ),
        "(인간화|의인화|인간화해~|의인화해~|고양이 인간화|고양이 의인화|고양이를 인간화해~|고양이를 의인화해~)",
        "(사람으로|인간으로) (만들어~|바꿔~|변신시켜~|그려~|변환)",
        "(고양이가|이 고양이가) 사람이라면",
        "사람이 된 (고양이|모습으로 그려~|모습으로)",
    ),
}
