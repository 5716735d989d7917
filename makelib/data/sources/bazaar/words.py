"""The words of the generated world `bazaar`, English and Chinese side by side: data only, `goods` and `shoppers` say who uses which.

Every row reads `value and English word | Chinese word | English synonyms | Chinese synonyms`. Sellers know the first
two columns only, shoppers all of them; so a synonym stands in no title. Kinds of goods (`category`, `type`) also have an
everyday word, the first in the synonyms' column, that shoppers type and some sellers write: "dress", "bag", "shoe".
Brands are invented, their "synonyms" slips.
"""

from __future__ import annotations

TABLES = {
    "category": """
        dresses    | 裙装 | dress womenswear            | 裙子 女装
        shirts     | 上衣 | shirt tops                  | 衣服 衣裳
        shoes      | 鞋履 | shoe footwear               | 鞋子 鞋袜
        bags       | 箱包 | bag luggage                 | 包包 行李
        rugs       | 软垫 | mat carpeting               | 垫子 铺物
        curtains   | 窗饰 | window drapery              | 窗户 软装
        chargers   | 充电配件 | power charging              | 充电 供电
        batteries  | 电力照明 | light lighting              | 照亮 应急
        kettles    | 水具 | kitchen teaware             | 厨房 茶具
        headphones | 音频 | sound audio                 | 声音 听音
        vitamins   | 保健品 | vitamin supplements         | 维生素 补剂
        pens       | 文具 | writing stationery          | 写字 书写
    """,
    "type": """
        sundress   | 连衣裙 | summerdress frock           | 夏裙 洋装
        gown       | 晚礼服 | ballgown robe               | 礼裙 长袍
        skirt      | 半身裙 | miniskirt kilt              | 短裙 百褶
        tshirt     | T恤 | t-shirt tee                 | 短袖 汗衫
        sweater    | 毛衣 | knit jumper pullover        | 毛线 套头衫 线衫
        hoodie     | 卫衣 | hoody sweatshirt            | 帽衫 连帽衫
        vest       | 马甲 | bodywarmer waistcoat gilet  | 背褂 背心 坎肩
        sneakers   | 运动鞋 | runners trainers            | 跑鞋 球鞋
        boots      | 靴子 | boot wellies                | 皮靴 高筒
        sandals    | 凉鞋 | flipflops slides            | 凉拖 拖鞋
        heels      | 高跟鞋 | heel pumps stilettos        | 高跟 细跟 尖头
        handbag    | 手提包 | clutch purse                | 手包 坤包
        backpack   | 双肩包 | daypack rucksack            | 背包 书包
        tote       | 托特包 | carryall shopper            | 大包 购物袋
        rug        | 地毯 | runner carpet               | 毯子 毡子
        doormat    | 门垫 | footmat entry-mat           | 脚垫 蹭脚
        cushion    | 靠垫 | bolster pillow              | 枕垫 抱枕
        curtain    | 窗帘 | sheers drape                | 帘子 帷幔
        blind      | 百叶窗 | blinds shutter              | 百叶 卷帘
        lampshade  | 台灯 | shade lamp                  | 罩灯 灯罩
        charger    | 充电器 | plug adapter                | 快充 插头
        powerbank  | 充电宝 | battery-pack power-pack     | 充电仓 移动电源
        cable      | 数据线 | wire cord lead              | 电线 连接绳 线缆
        battery    | 干电池 | cell accumulator            | 电池 蓄能
        flashlight | 手电筒 | spotlight torch             | 手电 强光
        lantern    | 露营灯 | nightlight camp-light       | 提灯 马灯
        kettle     | 烧水壶 | waterboiler boiler          | 水壶 煮水器
        teapot     | 茶壶 | pot brewer                  | 泡壶 泡茶
        mug        | 马克杯 | mugs cup beaker             | 水杯 杯子 茶盏
        headset    | 头戴耳机 | headphone cans              | 耳机 耳罩
        earbuds    | 入耳式 | buds earpieces              | 耳豆 耳塞
        speaker    | 音箱 | speakers boombox            | 音响 扬声器
        tablets    | 片剂 | capsules pills              | 胶囊 药丸
        powder     | 冲剂 | mix shake                   | 粉剂 粉末
        drops      | 滴剂 | syrup tincture              | 糖浆 口服液
        pen        | 钢笔 | biro ballpoint              | 签字笔 圆珠笔
        marker     | 记号笔 | felt-tip highlighter        | 彩笔 荧光笔
        pencil     | 铅笔 | pencils crayon              | 画笔 蜡笔
    """,
    "colour": """
        red        | 红色     | crimson scarlet   | 绯红 朱砂
        orange     | 橙色     | tangerine         | 橘子
        yellow     | 黄色     | lemon mustard     | 柠檬 芥末
        green      | 绿色     | olive emerald     | 橄榄 翡翠
        teal       | 青色     | turquoise         | 松石
        blue       | 蓝色     | navy azure        | 藏青 蔚蓝
        purple     | 紫色     | violet plum       | 葡萄 薰衣草
        pink       | 粉色     | rose blush        | 樱花 桃红
        brown      | 棕色     | chestnut coffee   | 栗子 咖啡
        black      | 黑色     | ebony             | 乌木
        white      | 白色     | ivory snow        | 象牙 雪色
        grey       | 灰色     | charcoal          | 炭灰
    """,
    "pattern": """
        plain      | 纯色     | solid             | 素面
        striped    | 条纹     | banded            | 横杠
        dotted     | 圆点     | polka spotted     | 波点 豆豆
        checked    | 格子     | plaid tartan      | 苏格兰 方块
        floral     | 碎花     | blossom           | 田园
        zigzag     | 锯齿     | chevron           | 人字纹
        ombre      | 渐变     | gradient faded    | 晕染 过渡
    """,
    "silhouette": """
        slim       | 修身     | narrow fitted     | 窄款 紧身
        wide       | 宽松     | loose broad       | 阔型 肥大
        flared     | 喇叭     | bell-shaped       | 伞形
        tapered    | 锥形     | pointed           | 尖底
        short      | 短款     | cropped stubby    | 迷你 矮款
    """,
    "brand": """
        norvia     | 诺维     | norva             | 诺唯
        lumelo     | 露美     | lumello           | 璐美
        kestra     | 凯思     | kestrah           | 恺思
        oakby      | 奥克     | oakbie            | 澳克
        velmo      | 威尔     | wellmo            | 薇尔
        tarind     | 塔林     | tarinde           | 塔琳
        zephra     | 泽芙     | sephra            | 泽弗
        quillo     | 奎洛     | kwillo            | 魁洛
        brimsa     | 布莱     | brimza            | 卜莱
        haldor     | 哈多     | haldur            | 蛤多
        mirelo     | 米蕾     | mirello           | 蜜蕾
        pavona     | 帕沃     | pavonna           | 帕窝
        solvex     | 索维     | solvecks          | 锁维
        dunmar     | 邓玛     | dunmarr           | 登玛
        jovell     | 乔威     | jowell            | 桥威
        ferrix     | 菲瑞     | ferricks          | 飞瑞
        ambrel     | 安柏     | ambrell           | 庵柏
        ostara     | 欧斯     | ostarra           | 鸥斯
        ravelo     | 瑞乐     | ravello           | 锐乐
        cintro     | 辛卓     | sintro            | 欣卓
        ulmera     | 优梅     | ulmerra           | 悠梅
        wendor     | 文德     | wendoor           | 闻德
        yarwin     | 雅温     | yarwyn            | 亚温
        ixalo      | 伊萨     | iksalo            | 依萨
    """,
    "material": """
        cotton     | 棉质     | jersey            | 针织
        linen      | 亚麻     | flax              | 苎麻
        wool       | 羊毛     | fleece            | 绒线
        leather    | 皮革     | cowhide           | 牛皮
        steel      | 不锈钢   | metal inox        | 金属 铁艺
        plastic    | 塑料     | acrylic           | 树脂
        bamboo     | 竹制     | rattan            | 藤编
        glass      | 玻璃     | crystal           | 水晶
    """,
    "capacity": """
        small      | 小号     | petite            | 娇小
        medium     | 中号     | mid-size          | 常规
        large      | 大号     | big               | 大码
        oversize   | 加长     | giant             | 巨型
        2000mah    | 2000毫安 | 2k                | 两千
        5000mah    | 5000毫安 | 5k                | 五千
        10000mah   | 10000毫安| 10k               | 一万
        20000mah   | 20000毫安| 20k               | 两万
        500ml      | 500毫升  | half-litre        | 半公升
        1l         | 1升      | one-litre         | 一公升
        2l         | 2升      | two-litre         | 两公升
        3l         | 3升      | family-size       | 三公升
        10h        | 10小时   | day-long          | 整日
        20h        | 20小时   | round-the-clock   | 昼夜
        40h        | 40小时   | weekend           | 周末
        60h        | 60小时   | marathon          | 马拉松
        6pack      | 6件装    | half-dozen        | 半打
        12pack     | 12件装   | dozen             | 一打
        30pack     | 30件装   | monthly           | 整月
        100pack    | 100件装  | bulk              | 整箱
    """,
    # words that say nothing about the product: the first two kinds fill titles, the last one queries
    "promo": """
        new              | 新款     | |
        hot sale         | 爆款热卖 | |
        free shipping    | 包邮     | |
        2026             | 2026年   | |
        official         | 官方正品 | |
        limited offer    | 限时特价 | |
        buy one get one  | 买一送一 | |
        top rated        | 好评如潮 | |
    """,
    "neutral": """
        classic    | 经典     | |
        daily      | 日常     | |
        gift       | 礼物     | |
        premium    | 优质     | |
        style      | 风格     | |
        portable   | 便携     | |
        fashion    | 时尚     | |
        home       | 家居     | |
        quality    | 品质     | |
        outdoor    | 户外     | |
    """,
    "filler": """
        cheap      | 便宜     | |
        best       | 最好     | |
        nice       | 好看     | |
    """,
}


def vocabulary(language: str = "en") -> dict[str, dict[str, tuple[str, ...]]]:
    """Kind of word -> value -> (the word that titles use, then, for `category` and `type`, the everyday word that some of
    them use, then the synonyms that only shoppers use)."""
    column = {"en": 0, "zh": 1}[language]
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for kind, table in TABLES.items():
        words[kind] = {}
        for line in table.strip().splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            words[kind][cells[0]] = (cells[column], *cells[2 + column].split())
    return words
